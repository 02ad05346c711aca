"""Rows of a benchmark evaluation: sampled and judged completions, and what they add up to by problem."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import ClassVar

from disa.evaluation.metrics import CORRECT_REWARD, coverage, distinct_modes_at_k, effective_modes, pass_at_k


@dataclasses.dataclass(frozen=True, slots=True)
class JudgedSample:
    """One sampled and judged completion of one model on one task."""

    VERSION: ClassVar[int] = 1

    model: str
    task: str
    prompt_id: str
    draw: int
    completion: str
    completion_tokens: int | None
    """Stop token included, null where a server does not say."""
    truncated: bool
    """Cut at the length limit."""
    reward: float | None
    """Null where the verifier came to no verdict: such a sample is neither correct nor wrong."""
    mode: str | None
    """Canonical form of a correct solution on countable tasks, null otherwise."""

    @property
    def correct(self) -> bool:
        """Whether it earned the full reward."""
        return self.reward is not None and self.reward >= CORRECT_REWARD


@dataclasses.dataclass(frozen=True, slots=True)
class ProblemScore:
    """One model's samples of one problem, counted."""

    VERSION: ClassVar[int] = 1

    model: str
    task: str
    prompt_id: str
    samples: int
    undecided: int
    correct: int
    truncated: int
    mean_tokens: float | None
    modes: list[str]
    """Mode of every correct sample on countable tasks, empty elsewhere."""
    n_solutions: int | None
    """Exact number of distinct solutions, null where the task cannot count them."""

    @property
    def decided(self) -> int:
        """Samples with a verdict."""
        return self.samples - self.undecided

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """Value of every metric this problem defines.

        Accuracy is taken over the samples with a verdict; a problem with fewer than k of them does not
        define its metrics at k. ``*_low`` and ``*_high`` count every undecided sample as wrong and as
        correct: whatever the missing verdicts are, the metric of all samples lies between.
        """
        values: dict[str, float] = {}
        for k in ks:
            if self.decided >= k:
                values |= _accuracy(self.correct, self.decided, k)
            if k <= self.samples:
                low, high = (_accuracy(c, self.samples, k) for c in (self.correct, self.correct + self.undecided))
                values |= {f"{m}_low": v for m, v in low.items()} | {f"{m}_high": v for m, v in high.items()}
        if self.n_solutions is not None and self.decided:
            modes = [*self.modes, *[None] * (self.decided - self.correct)]
            values |= {f"distinct_modes@{k}": distinct_modes_at_k(modes, k) for k in ks if self.decided >= k}
            values["effective_modes"] = effective_modes(modes)
            if self.n_solutions > 0:
                values["coverage"] = coverage(modes, self.n_solutions)
        values["undecided"] = self.undecided / self.samples
        values["truncated"] = self.truncated / self.samples
        if self.mean_tokens is not None:
            values["tokens"] = self.mean_tokens
        return values


def _accuracy(correct: int, n: int, k: int) -> dict[str, float]:
    # Averaged over every choice of k samples, the mean of k is the mean of all.
    verdicts = [True] * correct + [False] * (n - correct)
    return {f"mean@{k}": correct / n, f"pass@{k}": pass_at_k(verdicts, k)}


def problem_scores(samples: Iterable[JudgedSample], n_solutions: dict[str, int | None]) -> list[ProblemScore]:
    """Count the samples of every (model, task, problem), in the order they come in.

    Parameters
    ----------
    samples : iterable of JudgedSample
    n_solutions : dict
        Exact number of solutions by ``prompt_id``, None where the task cannot count them.
    """
    groups: dict[tuple[str, str, str], list[JudgedSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.model, sample.task, sample.prompt_id].append(sample)
    return [_score(key, rows, n_solutions[key[2]]) for key, rows in groups.items()]


def _score(key: tuple[str, str, str], rows: list[JudgedSample], n_solutions: int | None) -> ProblemScore:
    tokens = [r.completion_tokens for r in rows if r.completion_tokens is not None]
    modes = [r.mode for r in rows if r.correct and r.mode is not None]
    return ProblemScore(
        *key,
        samples=len(rows),
        undecided=sum(r.reward is None for r in rows),
        correct=sum(r.correct for r in rows),
        truncated=sum(r.truncated for r in rows),
        mean_tokens=sum(tokens) / len(tokens) if tokens else None,
        modes=modes,
        n_solutions=n_solutions if len(modes) == sum(r.correct for r in rows) else None,
    )
