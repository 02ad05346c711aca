"""What an anchor knows of its prompts: the token ids log Z was estimated for, and completions to try a reference on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from disa.runs.provenance import digest
from disa.runs.records import ScoredTrajectory

PROBES = 16
"""Prompts with a completion to try: enough for a mean, few enough to cost a fraction of a training step."""


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """One prompt. Written by ``anchor``."""

    VERSION: ClassVar[int] = 2
    READS: ClassVar[tuple[int, ...]] = (1,)

    prompt_id: str
    prompt_digest: str
    """Of the rendered prompt's token ids (:func:`prompt_digest`)."""
    completion_ids: list[int] | None = None
    """Token ids of one stored trajectory; null for prompts that only the digest is kept of."""
    log_ref: float | None = None
    """Its log-probability under the reference, as scoring computed it."""
    tool_mask: list[int] | None = None
    """1 for each of its tokens that the model wrote, 0 for those of tools; null where the model wrote all."""


def prompt_digest(ids: Sequence[int]) -> str:
    """Digest of a rendered prompt's token ids."""
    return digest([int(i) for i in ids])


def take_probes(prompt_ids: Mapping[str, Sequence[int]], rows: Sequence[ScoredTrajectory]) -> list[Probe]:
    """A digest of every prompt, and a completion of up to :data:`PROBES` of them, spread over the prompts.

    The reference's own draws are preferred: they are likely where a changed reference is not.
    """
    found: dict[str, ScoredTrajectory] = {}
    for row in rows:
        if row.own_length and row.prompt_id in prompt_ids:
            first = found.setdefault(row.prompt_id, row)
            if first.source != "reference" == row.source:
                found[row.prompt_id] = row
    ids = sorted(found)
    tried = set(ids[:: max(1, -(-len(ids) // PROBES))])
    return [
        Probe(i, prompt_digest(prompt_ids[i]), list(found[i].completion_ids), found[i].log_ref, found[i].tool_mask)
        if i in tried
        else Probe(i, prompt_digest(prompt_ids[i]))
        for i in sorted(prompt_ids)
    ]
