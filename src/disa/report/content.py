"""What a report is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from disa.evaluation.metrics import Summary
from disa.runs.records import EvaluationRecord, PartitionEstimate, Prompt


@dataclasses.dataclass(frozen=True)
class ReportContent:
    """Everything the page shows; an empty list or mapping leaves its section out."""

    title: str
    recipe: str
    """The recipe as YAML text."""
    estimates: list[PartitionEstimate]
    anchor_facts: dict[str, Any]
    """Fields of the anchor's fingerprint."""
    beta: float
    """Inverse temperature."""
    training_logs: dict[str, list[dict[str, Any]]]
    """Method -> logged steps (``step``, ``completions``, ``reward``, ``kl_to_target``, ...; any may be missing)."""
    summary: Summary
    prompts: list[Prompt]
    records: list[EvaluationRecord]
    parity: dict[str, Any]
    """Parity report of ``scoring``: per source ``mean`` and ``max`` in nats per token, and the ``bound``."""
    timings: dict[str, float]
    """Stage -> wall-clock seconds."""
    versions: dict[str, str]


def models_in_order(names: Iterable[str]) -> list[str]:
    """Put the reference first, then the trained models as they come."""
    return sorted(names, key=lambda name: name != "reference")
