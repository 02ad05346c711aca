"""Countdown: the set of solutions is exact, and the verifier accepts these and nothing else."""

import itertools
import json
import random
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.rewards.expression import canonical_form, expression_numbers, expression_value, parse_expression
from disa.runs.records import Prompt
from disa.tasks import make_task
from disa.tasks.config import CountdownConfig
from disa.tasks.countdown import all_expressions

TASK = make_task(CountdownConfig(name="countdown"))


def prompt(numbers, target, operators="+-*/"):
    payload = json.dumps({"numbers": numbers, "target": target, "operators": operators})
    return Prompt("p", "countdown", "train", "?", payload, None)


def trees(numbers):
    """Shapes of all binary expressions over the numbers in this order, as nested pairs."""
    if len(numbers) == 1:
        yield numbers[0]
    for cut in range(1, len(numbers)):
        yield from itertools.product(trees(numbers[:cut]), trees(numbers[cut:]))


def valued(tree, operators):
    """Every way to put operators into a tree, as (class of rewritings, value), by nested sorted tuples.

    Shares nothing with the code under test: a sum is a sorted tuple of signed operands, a product likewise.
    """
    if not isinstance(tree, tuple):
        yield ("leaf", tree), Fraction(tree)
        return
    for (left, a), (right, b) in itertools.product(valued(tree[0], operators), valued(tree[1], operators)):
        for operator in operators:
            if operator == "/" and b == 0:
                continue
            reached = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator]
            kind, sign = ("sum", 1) if operator in "+-" else ("product", 1)
            second = -1 if operator in "-/" else 1
            parts = [(s * sign, part) for s, part in (left[1] if left[0] == kind else [(1, left)])]
            parts += [(s * second, part) for s, part in (right[1] if right[0] == kind else [(1, right)])]
            yield (kind, tuple(sorted(parts, key=repr))), reached


def brute_force(numbers, operators):
    """Value of every class, over all orders of the numbers, all trees, all operators."""
    found = {}
    for order in set(itertools.permutations(numbers)):
        for tree in trees(order):
            found.update(valued(tree, operators))
    return found


@pytest.mark.parametrize(
    "numbers, operators",
    [
        ((2, 3, 7), "+-*/"),
        ((1, 1, 2), "+-*/"),  # equal numbers, and divisors that are 0
        ((5, 5, 5), "+-*/"),
        ((1, 2, 3, 4), "+-*/"),
        ((3, 3, 8, 8), "+-*/"),
        ((2, 4, 4, 12), "+-*"),
        ((1, 2, 3, 5, 8), "+-"),
        ((1, 2, 2, 6, 6), "+*"),
    ],
)
def test_enumeration_equals_brute_force_over_all_trees(numbers, operators):
    # Only "+" comes without "-" in a recipe, but the enumeration takes any set.
    brute = brute_force(numbers, operators)
    found = all_expressions(numbers, operators)
    assert len(found) == len(brute)
    assert sorted(reached for _, reached in found.values()) == sorted(brute.values())
    for form, (expression, reached) in found.items():
        assert canonical_form(expression) == form
        assert expression_value(expression) == reached
        assert sorted(expression_numbers(expression)) == sorted(numbers)


@pytest.mark.parametrize("numbers, count", [((101, 1009), 6), ((101, 1009, 10007), 68), ((7, 11, 13, 29), 1260)])
def test_number_of_forms_is_that_of_the_generating_function(numbers, count):
    # A sum is a set of two or more signed operands that are no sums, one of them plain; a product likewise.
    # So S(x) = e^(2u) - e^u - u with u = x + S, where S counts sums and equally products, and all = x + 2 S.
    assert labelled_forms(len(numbers)) == count
    assert len(all_expressions(numbers)) == count


def test_five_numbers_have_as_many_forms_as_the_generating_function_says():
    assert len(all_expressions((101, 1009, 10007, 100003, 1000003))) == labelled_forms(5) == 32632


def labelled_forms(n):
    """n! times the coefficient of x^n in x + 2 S, by iterating the equation for S on truncated series."""
    s = [Fraction(0)] * (n + 1)
    for _ in range(n):
        u = list(s)
        u[1] += 1
        power, new, factorial = [Fraction(1)] + [Fraction(0)] * n, [Fraction(0)] * (n + 1), 1
        for k in range(1, n + 1):
            power = [sum(power[i] * u[j - i] for i in range(j + 1)) for j in range(n + 1)]
            factorial *= k
            if k >= 2:
                new = [a + (2**k - 1) * b / factorial for a, b in zip(new, power, strict=True)]
        s = new
    result = 2 * s[n] + (n == 1)
    for k in range(1, n + 1):
        result *= k
    return result


@pytest.mark.parametrize("numbers", [[2, 3, 7], [1, 1, 2], [3, 3, 8, 8], [1, 2, 3, 4]])
def test_solutions_of_every_reachable_target_are_exactly_those_of_brute_force(numbers):
    brute = brute_force(numbers, "+-*/")
    for target in range(1, 61):
        solutions = TASK.solutions(prompt(numbers, target))
        assert len(solutions) == len(set(solutions)) == sum(v == target for v in brute.values())
        assert solutions == sorted(solutions)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=4), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_each_solution_is_its_own_mode_and_every_demonstration_lands_on_one(numbers, seed):
    rng = random.Random(seed)
    reachable = [int(v) for _, v in all_expressions(tuple(sorted(numbers))).values() if v.denominator == 1 and v >= 1]
    row = prompt(numbers, rng.choice(reachable))
    solutions = TASK.solutions(row)
    assert [TASK.mode(row, text) for text in solutions] == solutions
    demonstration = TASK.demonstration(row, rng, noisy=False)
    assert TASK.mode(row, demonstration) in solutions
    assert TASK.reward(row, demonstration) == 1.0
    noisy = parse_expression(TASK.demonstration(row, rng, noisy=True))
    assert sorted(expression_numbers(noisy)) == sorted(numbers)


def test_demonstrations_reach_every_solution_in_more_than_one_way_of_writing_it():
    row, rng = prompt([2, 3, 7], 42), random.Random(0)
    texts = {TASK.demonstration(row, rng, noisy=False) for _ in range(200)}
    # 2*3*7 is the one form, in six orders; 200 draws miss a given order once in e^36.
    assert TASK.solutions(row) == ["2*3*7"]
    assert texts == {"*".join(order) for order in itertools.permutations("237")}


@pytest.mark.parametrize(
    "text, mode",
    [
        ("3*(7-2)", "(7-2)*3"),
        (" ( 7 - 2 ) * 3 \n", "(7-2)*3"),
        ("15", None),  # the target itself
        ("7+7+1", None),  # other numbers
        ("3*(7-2)+0", None),  # one number more
        ("3*5", None),
        ("3*7-2", None),  # another value
        ("3*(7-2)=15", None),
        ("3*(7-2)/1", None),
        ("3*(7-2)*(7/7)", None),
        ("2+3+7", None),
    ],
)
def test_what_counts_as_correct_for_2_3_7_to_15(text, mode):
    row = prompt([2, 3, 7], 15)
    assert TASK.mode(row, text) == mode
    assert TASK.reward(row, text) == float(mode is not None)


def test_every_number_is_used_as_often_as_it_is_given():
    row = prompt([2, 2, 3], 7)
    assert TASK.mode(row, "2+2+3") == "2+2+3"
    assert TASK.mode(row, "2*2+3") == "2*2+3"
    assert TASK.mode(row, "2+3+2*1") is None
    assert TASK.mode(prompt([2, 3, 3], 7), "2+2+3") is None


def test_operators_left_out_of_the_task_are_wrong_in_a_completion_and_absent_from_the_solutions():
    row = prompt([2, 3, 7], 42, operators="+-")
    assert TASK.solutions(row) == []
    assert TASK.mode(row, "2*3*7") is None
    assert TASK.mode(prompt([2, 3, 7], 12, operators="+"), "2+3+7") == "2+3+7"


def test_fractions_on_the_way_are_exact():
    # 8 / (3 - 8/3) is exactly 24, which floats miss.
    row = prompt([3, 3, 8, 8], 24)
    assert TASK.solutions(row) == ["8/(3-8/3)"]
    assert TASK.mode(row, "8/(3-(8/3))") == "8/(3-8/3)"


@pytest.mark.parametrize("numbers", [3, 4, 5])
def test_drawn_prompts_have_the_stated_shape_and_enough_solutions(numbers):
    sizes = {"train_prompts": 3, "heldout_prompts": 1, "warmup_prompts": 0}
    # Enumerating five numbers takes a second where they differ: few values keep it short.
    high = 2 if numbers == 5 else 6
    task = make_task(CountdownConfig(name="countdown", numbers=numbers, high=high, min_solutions=2, **sizes))
    for row in task.prompts("train") + task.prompts("heldout"):
        payload = json.loads(row.payload)
        assert len(payload["numbers"]) == numbers
        assert payload["numbers"] == sorted(payload["numbers"])
        assert all(1 <= n <= high for n in payload["numbers"])
        assert 1 <= payload["target"] <= 50
        assert row.prompt == f"{' '.join(map(str, payload['numbers']))}={payload['target']}:"
        assert row.n_solutions == len(task.solutions(row)) >= 2
        assert set(row.prompt) <= set(task.alphabet)


HOSTILE = [
    "__import__('os').system('true')",
    "2**3**7**99999",
    "9" * 1_000_000,
    "(" * 1_000_000,
    "2+" * 500_000,
    " " * 1_000_000 + "2",
    "\u0662*\u0663*\u0667",
    "2*3*7\0",
    "2*3*7 # 42",
    "42 if 1 else 2*3*7",
    "2*3*7;",
    "\ud800",
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_completions_are_wrong_at_once(text):
    start = time.perf_counter()
    assert TASK.mode(prompt([2, 3, 7], 42), text) is None
    assert TASK.reward(prompt([2, 3, 7], 42), text) == 0.0
    assert time.perf_counter() - start < 1.0  # two looks at no more than 200 characters; a second for a busy machine


@settings(max_examples=100, deadline=1000)
@given(st.text("237+-*/() ", max_size=40) | st.text(max_size=60))
def test_a_completion_is_correct_exactly_when_its_form_is_among_the_solutions(text):
    row = prompt([2, 3, 7], 42)
    expression = parse_expression(text)
    form = canonical_form(expression) if expression is not None else None
    assert (TASK.mode(row, text) is not None) == (form in TASK.solutions(row))
