"""The typed rows that cross stages, in pipeline order.

Every stage talks to the next one only through these rows on disk (:mod:`disa.runs.parquet_rows`). A row class is a
frozen dataclass. Earlier versions that a class still understands are its ``READS``: a column they lack takes the
field's default, as it does in plain Parquet of other origin.

Log-probabilities are sums over the completion's tokens, in nats, float64.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

SOURCES = ("reference", "proposal")
"""The models that trajectories are drawn from."""
CORRECT_REWARD = 1.0
"""A completion is correct when it earns the full reward; partial credit is not a solution."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """One problem. Written by ``tasks``."""

    VERSION: ClassVar[int] = 1

    prompt_id: str
    """Identity of (task, prompt text): equal text gives an equal id in every run."""
    task: str
    split: str
    """``train``, ``validation`` (for choosing settings) or ``heldout`` (for reporting only)."""
    prompt: str
    """The text shown to the model, before any chat template."""
    payload: str
    """JSON object with what the task's reward needs (target, graph, gold answer, tests)."""
    n_solutions: int | None
    """Exact number of distinct valid solutions, null where the task cannot count them."""

    def as_row(self) -> dict[str, Any]:
        """Plain values, as a trainer's data set carries them beside its own columns."""
        return dataclasses.asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prompt:
        """Inverse of :meth:`as_row`; other keys are left out."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True, slots=True)
class Trajectory:
    """One offline completion. Written by ``proposals``."""

    VERSION: ClassVar[int] = 3
    READS: ClassVar[tuple[int, ...]] = (1, 2)

    prompt_id: str
    draw: int
    """Index of the draw within its prompt; with the seed it determines the random numbers."""
    source: str
    """Model it was drawn from: ``reference`` or ``proposal``."""
    completion: str
    completion_ids: list[int]
    """Token ids, the stop token included unless truncated."""
    truncated: bool
    """Cut at the length limit, without a stop token: an atom of its own in the distribution."""
    log_sampler: float | None
    """Log-probability under the model it was drawn from, as the sampler computed it; null where it did not say."""
    retokenised: bool = dataclasses.field(default=False, kw_only=True)
    """The sampler gave text only, and ``completion_ids`` are what the reference's tokenizer makes of it."""
    tool_mask: list[int] | None = dataclasses.field(default=None, kw_only=True)
    """1 for each of ``completion_ids`` that the model wrote, 0 for those of tools and environments; null where the
    model wrote all. Every log-probability and length is of the model's own."""
    judged: float | None = dataclasses.field(default=None, kw_only=True)
    """Reward given as it was drawn, where tools or environments took part; null where that is left to scoring."""

    @property
    def own_length(self) -> int:
        """Tokens that the model wrote."""
        return len(self.completion_ids) if self.tool_mask is None else sum(self.tool_mask)


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredTrajectory(Trajectory):
    """A trajectory with both models' log-probabilities and its reward. Written by ``scoring``."""

    VERSION: ClassVar[int] = 4
    READS: ClassVar[tuple[int, ...]] = (2, 3)
    DERIVED: ClassVar[tuple[str, ...]] = ("own_length",)
    """Columns of its files beside the fields, so that lengths are known without the token ids."""

    log_ref: float
    log_proposal: float | None
    """Null where neither the proposal's weights nor its sampler's number are at hand: no importance weight then."""
    reward: float | None
    """Null where the verifier came to no verdict: such a row takes no part in any estimate or loss."""


@dataclasses.dataclass(frozen=True, slots=True)
class LogProb:
    """Log-probability of one trajectory under one model. Written by ``scoring`` on its way."""

    VERSION: ClassVar[int] = 1

    log_p: float


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionEstimate:
    """The estimate of one prompt's log Z with everything needed to judge it.

    Written by ``partition``; the rows of an anchor are these rows, frozen.
    """

    VERSION: ClassVar[int] = 1

    prompt_id: str
    split: str
    log_z: float
    """Estimate of log E_ref[exp(beta r)], in nats."""
    q: float
    """Soft success probability: Z = exp(beta r_min) (1 + expm1(beta (r_max - r_min)) q)."""
    interval_low: float
    interval_high: float
    """Two-sided interval for log Z at the level that the manifest states."""
    n: int
    n_reference: int
    mean_reward_reference: float
    """Mean reward of the reference-drawn trajectories (the plain pass rate when r is 0 or 1)."""
    ess: float
    hits_ess: float
    mean_weight: float
    pareto_k: float | None
    method: str
    flags: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One sampled and judged completion of one model. Written by ``evaluation`` and ``disa evaluate``."""

    VERSION: ClassVar[int] = 3

    model: str
    """``reference`` or the name of a trained policy (``disa``, ``grpo``, ...); of ``disa evaluate`` as it was named."""
    task: str
    prompt_id: str
    split: str
    draw: int
    completion: str
    completion_tokens: int | None
    """Stop token included, null where a server does not say."""
    truncated: bool
    reward: float | None
    """Null where the verifier came to no verdict: neither correct nor wrong."""
    mode: str | None
    """Canonical form of a correct solution where the task has modes, null otherwise."""
    log_pi: float | None = None
    """Log-probability under the evaluated model; like ``log_ref`` null where no reference is at hand."""
    log_ref: float | None = None

    @property
    def correct(self) -> bool:
        """Whether it earned the full reward."""
        return self.reward is not None and self.reward >= CORRECT_REWARD


@dataclasses.dataclass(frozen=True, slots=True)
class PromptValue:
    """One metric of one model on one prompt. Written by ``report`` and ``disa evaluate``."""

    VERSION: ClassVar[int] = 1

    model: str
    group: str
    """Split of a run, task of ``disa evaluate``."""
    prompt_id: str
    metric: str
    value: float


class Record(typing.Protocol):
    """What every row class is: a dataclass with a version."""

    VERSION: ClassVar[int]
    __dataclass_fields__: ClassVar[dict[str, Any]]


Row = TypeVar("Row", bound=Record)
