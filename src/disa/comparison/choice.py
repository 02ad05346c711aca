"""What the criterion chooses among candidates of a search, and among DISA's modes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

Name = TypeVar("Name")


def best_of(scores: Mapping[Name, float], *, lower_is_better: bool) -> Name:
    """Name of the best score, the first of equal ones; NaN, which a policy that diverged gives, is the worst."""

    def order(name: Name) -> tuple[bool, float]:
        score = scores[name]
        return math.isnan(score), score if lower_is_better else -score

    return min(scores, key=order)
