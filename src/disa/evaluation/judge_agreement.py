"""How far a judge of strategies can be trusted: its agreement with labels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from disa.evaluation.judge import StrategyVerdict
from disa.evaluation.judge_protocol import DIFFERENT, SAME


@dataclasses.dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """A judge against labels: never a bare accuracy."""

    pairs: int
    abstained: dict[str, int]
    """Number by reason; the rest is over the pairs with a verdict."""
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    kappa: float | None
    """Agreement beyond chance; None where chance alone agrees always."""
    kappa_interval: tuple[float, float] | None
    confusion: dict[str, int]
    """``label/verdict``: number."""


def judge_agreement(labels: Sequence[str], verdicts: Sequence[StrategyVerdict]) -> JudgeAgreement:
    """Accuracy with Wilson's (1927) 95% interval, and Cohen's (1960) kappa with the interval that follows from it.

    Kappa is linear in the accuracy at given margins, so its interval is the accuracy's, mapped. As in Cohen's own
    standard error the margins count as known; other than that one it is not of width 0 where all agree.
    """
    abstained = dict(Counter(v.reason for v in verdicts if v.value is None))
    names = (SAME, DIFFERENT)
    table = np.zeros((2, 2), dtype=np.int64)
    for label, verdict in zip(labels, verdicts, strict=True):
        if verdict.value is not None:
            table[names.index(label), names.index(verdict.value)] += 1
    confusion = {f"{a}/{b}": int(table[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}
    n = int(table.sum())
    if n == 0:
        return JudgeAgreement(len(labels), abstained, None, None, None, None, confusion)
    from scipy.stats import binomtest  # takes a second to load

    right = int(np.trace(table))
    accuracy, found = right / n, binomtest(right, n).proportion_ci(0.95, "wilson")
    ends = (float(found.low), float(found.high))
    kappa, low, high = (cohen_kappa(share, table) for share in (accuracy, *ends))
    interval = None if low is None or high is None else (low, high)
    return JudgeAgreement(len(labels), abstained, accuracy, ends, kappa, interval, confusion)


def cohen_kappa(observed: float, table: np.ndarray) -> float | None:
    """Kappa ``(p_o - p_e) / (1 - p_e)`` of an observed agreement p_o, with p_e from the table's margins."""
    p = table / table.sum()
    expected = float(p.sum(axis=1) @ p.sum(axis=0))
    return (observed - expected) / (1 - expected) if expected < 1 else None
