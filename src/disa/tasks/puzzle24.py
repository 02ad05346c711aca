"""Puzzle 24: reach 24 with each of four given numbers exactly once, by ``+ - * /``."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

from disa.tasks.config import Puzzle24Config
from disa.tasks.countdown import ExpressionTask, all_expressions

NUMBERS, TARGET, OPERATORS = 4, 24, "+-*/"


class Puzzle24(ExpressionTask):
    """Countdown with four numbers, one target and all operators, as the card game has it."""

    name = "puzzle24"
    version = 1
    config: Puzzle24Config

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        """Random numbers in sorted order that reach 24 in enough ways."""
        numbers = sorted(rng.randint(self.config.low, self.config.high) for _ in range(NUMBERS))
        reached = [value for _, value in all_expressions(tuple(numbers), OPERATORS).values()]
        if reached.count(Fraction(TARGET)) < self.config.min_solutions:
            return None
        return {"numbers": numbers, "target": TARGET, "operators": OPERATORS}
