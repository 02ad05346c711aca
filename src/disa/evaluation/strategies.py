"""Diversity of strategies from verdicts on pairs.

Everything follows from pairs, so verdicts need not be transitive. For a problem with solutions drawn independently,
the share of different pairs estimates the Simpson index ``1 - sum_s p_s^2``, the chance that two further solutions use
different strategies, without bias whatever the number of solutions (Simpson, Nature 163, 1949).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

from disa.evaluation.judge import StrategyVerdict
from disa.evaluation.judge_protocol import DIFFERENT, SAME


@dataclasses.dataclass(frozen=True, slots=True)
class PairVerdict:
    """The verdict on two correct solutions of one model, as it is written to disk."""

    VERSION: ClassVar[int] = 1

    model: str
    task: str
    prompt_id: str
    first: int
    second: int
    """Draw indices."""
    verdict: str | None
    """``same`` or ``different``, null for an abstention."""
    reason: str


def strategy_metrics(verdicts: Iterable[StrategyVerdict], n: int) -> dict[str, float]:
    """Metrics of one problem with ``n`` judged solutions.

    ``simpson`` is over the pairs with a verdict; ``simpson_low`` and ``simpson_high`` count abstentions as same and
    as different. ``effective_strategies`` is the inverse of ``sum_s f_s^2`` with f the frequencies among the n
    solutions, ``n / (1 + (n - 1) (1 - simpson))``: between 1 and n, so compare models at equal n.
    """
    counts = Counter(v.value for v in verdicts)
    pairs, decided = counts.total(), counts[SAME] + counts[DIFFERENT]
    if pairs == 0:
        return {}
    values = {"abstained": counts[None] / pairs}
    values["simpson_low"] = counts[DIFFERENT] / pairs
    values["simpson_high"] = (counts[DIFFERENT] + counts[None]) / pairs
    if decided:
        values["simpson"] = counts[DIFFERENT] / decided
        values["effective_strategies"] = n / (1 + (n - 1) * (1 - values["simpson"]))
    return values
