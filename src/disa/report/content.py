"""What a report is made of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from disa.evaluation.certificate import Certificate
from disa.evaluation.metrics import MetricValue, Summary, Values, paired_difference, summarise_metrics
from disa.evaluation.tables import better_direction, models_in_order, shown_metrics
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
    reward_range: tuple[float, float]
    training_logs: dict[str, list[dict[str, Any]]]
    """Method -> logged steps (``step``, ``completions``, ``reward``, ``kl_to_target``, ...; any may be missing)."""
    values: Values
    """Metrics of every model by prompt."""
    prompts: list[Prompt]
    records: list[EvaluationRecord]
    parity: dict[str, Any]
    """Parity report of ``scoring``: per source ``mean`` and ``max`` in nats per token, and the ``bound``."""
    timings: dict[str, float]
    """Stage folder -> wall-clock seconds."""
    completions: dict[str, int]
    """Trajectories of the ``anchor``, and completions that each method drew in training."""
    versions: dict[str, str]
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """What is in a file -> its path from the page."""
    training_completions: Mapping[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    """Method -> completions of its last step (``step``, ``prompt``, ``completion``, ``reward``)."""
    binary: bool = True
    """Whether every reward was the smallest or the largest."""
    certificates: dict[str, Certificate] = dataclasses.field(default_factory=dict)
    """Of every model with what one is made of."""
    coverage: Mapping[str, Any] | None = None
    """The partition manifest's profile of the reference's successes under the proposal."""

    @functools.cached_property
    def summary(self) -> Summary:
        """Means over prompts."""
        return summarise_metrics(self.values)

    @functools.cached_property
    def differences(self) -> dict[tuple[str, str, str], MetricValue]:
        """Each policy's (model, split, metric) less the reference's, paired by prompt."""
        reference, found = self.values.get("reference", {}), {}
        for model, splits in self.values.items():
            for split, metrics in splits.items() if model != "reference" else ():
                for metric, values in metrics.items():
                    theirs = reference.get(split, {}).get(metric, {})
                    if better_direction(metric) and values.keys() & theirs.keys():
                        found[model, split, metric] = paired_difference(values, theirs)
        return found

    @property
    def models(self) -> list[str]:
        """The reference, then every model that was evaluated or trained."""
        return models_in_order(dict.fromkeys([*self.values, *self.training_logs]))

    @property
    def decisive_split(self) -> str | None:
        """Held-out prompts, or what was evaluated in their place."""
        splits = [split for found in self.values.values() for split in found]
        return "heldout" if "heldout" in splits else next(iter(splits), None)

    def judged_metrics(self, split: str) -> list[str]:
        """Metrics of a split that have a better side."""
        present = [metric for splits in self.values.values() for metric in splits.get(split, {})]
        return [metric for metric in shown_metrics(present) if better_direction(metric)]
