"""Countdown: reach a target with each given number exactly once, by ``+ - * /`` or some of them."""

from __future__ import annotations

import functools
import itertools
import random
from fractions import Fraction
from typing import Any

from disa.rewards.expression import (
    Expression,
    apply_operator,
    canonical_form,
    chain_operands,
    expression_numbers,
    expression_value,
    parse_expression,
)
from disa.runs.records import Prompt
from disa.tasks.config import CountdownConfig
from disa.tasks.task import Task, read_payload


class ExpressionTask(Task):
    """Modes are expressions modulo commutativity and associativity; all of them can be enumerated."""

    characters = "0123456789+-*/() "

    def identity(self, payload: dict[str, Any]) -> str:
        """The numbers in sorted order, and the target."""
        return f"{sorted(payload['numbers'])}={payload['target']}"

    def text(self, payload: dict[str, Any]) -> str:
        """The template, filled in."""
        numbers = " ".join(map(str, payload["numbers"]))
        return self.config.prompt_template.format(numbers=numbers, target=payload["target"])

    def solutions(self, prompt: Prompt) -> list[str]:
        """Canonical forms of every expression over all the numbers that reaches the target."""
        numbers, target, operators = read_payload(prompt, "numbers", "target", "operators")
        known = all_expressions(tuple(sorted(numbers)), operators)
        return sorted(form for form, (_, reached) in known.items() if reached == target)

    def mode(self, prompt: Prompt, completion: str) -> str | None:
        """Canonical form, where the completion is an expression that uses every number once and reaches the target."""
        numbers, target, operators = read_payload(prompt, "numbers", "target", "operators")
        expression = parse_expression(completion, operators)
        # Leaves first: only expressions over the given numbers are worth valuing, and those are small.
        if expression is None or sorted(expression_numbers(expression)) != sorted(numbers):
            return None
        return canonical_form(expression) if expression_value(expression) == target else None

    def demonstration(self, prompt: Prompt, rng: random.Random, *, noisy: bool) -> str:
        """A random solution; a noisy one is any random expression over the numbers."""
        numbers, operators = read_payload(prompt, "numbers", "operators")
        known = all_expressions(tuple(sorted(numbers)), operators)
        forms = list(known) if noisy else self.solutions(prompt)
        return _write(known[rng.choice(forms)][0], rng)


class Countdown(ExpressionTask):
    """Random numbers, and a target that they reach in enough ways."""

    name = "countdown"
    version = 1
    config: CountdownConfig

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        """Random numbers in sorted order, and a target drawn uniformly among those with enough solutions."""
        numbers = sorted(rng.randint(self.config.low, self.config.high) for _ in range(self.config.numbers))
        counts: dict[int, int] = {}
        for _, reached in all_expressions(tuple(numbers), self.config.operators).values():
            if reached.denominator == 1 and 1 <= reached <= self.config.max_target:
                counts[int(reached)] = counts.get(int(reached), 0) + 1
        targets = sorted(target for target, count in counts.items() if count >= self.config.min_solutions)
        if not targets:
            return None
        return {"numbers": numbers, "target": rng.choice(targets), "operators": self.config.operators}


@functools.lru_cache(maxsize=4096)
def all_expressions(numbers: tuple[int, ...], operators: str = "+-*/") -> dict[str, tuple[Expression, Fraction]]:
    """Every expression that uses each number exactly once, one for each canonical form, with its value.

    Built over subsets: an expression over a set joins two over a split of it. With all four operators
    distinct numbers have 68 (three), 1260 (four) or 32632 (five) forms, fewer where a divisor is 0.
    """
    full = (1 << len(numbers)) - 1
    table: dict[int, dict[str, tuple[Expression, Fraction]]] = {
        1 << i: {str(number): (number, Fraction(number))} for i, number in enumerate(numbers)
    }
    for mask in sorted(range(1, full + 1), key=int.bit_count):
        if mask in table:
            continue
        table[mask] = {}
        for left_mask in range(1, mask):
            if left_mask & mask == left_mask:
                pairs = itertools.product(table[left_mask].values(), table[mask ^ left_mask].values())
                # Each unordered split comes twice: commutative operators need it once.
                once = left_mask < mask ^ left_mask
                _join(table[mask], pairs, [o for o in operators if once or o in "-/"])
    return table[full]


def _join(found: dict[str, tuple[Expression, Fraction]], pairs: Any, operators: list[str]) -> None:
    for (left, left_value), (right, right_value) in pairs:
        for operator in operators:
            reached = apply_operator(operator, left_value, right_value)
            if reached is not None:
                expression = (operator, left, right)
                found.setdefault(canonical_form(expression), (expression, reached))


def _write(expression: Expression, rng: random.Random) -> str:
    """A random surface form: operands of every chain in random order."""
    if isinstance(expression, int):
        return str(expression)
    operator, inverse = ("+", "-") if expression[0] in "+-" else ("*", "/")
    plain, inverted = chain_operands(expression, operator)
    first = plain.pop(rng.randrange(len(plain)))
    rest = [(operator, part) for part in plain] + [(inverse, part) for part in inverted]
    rng.shuffle(rest)

    def operand(part: Expression) -> str:
        is_sum = not isinstance(part, int) and part[0] in "+-"
        return f"({_write(part, rng)})" if operator == "*" and is_sum else _write(part, rng)

    return operand(first) + "".join(sign + operand(part) for sign, part in rest)
