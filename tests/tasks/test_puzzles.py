"""Puzzle 24 has exactly the solutions that trying everything finds, and checks every number."""

import itertools
import random
from fractions import Fraction

import pytest

from disa.rewards.expression import canonical_form, parse_expression
from disa.tasks import make_task
from disa.tasks.config import Puzzle24Config
from disa.tasks.puzzle24 import Puzzle24

SMALL = {"name": "puzzle24", "train_prompts": 12, "heldout_prompts": 4, "warmup_prompts": 6}


@pytest.fixture(scope="module")
def task():
    return make_task(Puzzle24Config(**SMALL))


def asked(task, numbers):
    payload = {"numbers": sorted(numbers), "target": 24, "operators": "+-*/"}
    return task._prompt("train", task.text(payload), payload)


SHAPES = ("(({}{}{}){}{}){}{}", "({}{}({}{}{})){}{}", "({}{}{}){}({}{}{})", "{}{}(({}{}{}){}{})", "{}{}({}{}({}{}{}))")


def by_trying_everything(numbers):
    """Every written expression over the numbers that is worth 24, evaluated by Python's own rational arithmetic."""
    found = set()
    for a, b, c, d in set(itertools.permutations(numbers)):
        for p, q, r in itertools.product("+-*/", repeat=3):
            for shape in SHAPES:
                text = shape.format(a, p, b, q, c, r, d)
                exact = shape.format(*(f"Fraction({x})" if isinstance(x, int) else x for x in (a, p, b, q, c, r, d)))
                try:
                    value = eval(exact, {"Fraction": Fraction})  # our own text, not a model's
                except ZeroDivisionError:
                    continue
                if value == 24:
                    found.add(canonical_form(parse_expression(text)))
    return found


@pytest.mark.parametrize(
    "numbers", [(1, 5, 5, 5), (3, 3, 8, 8), (1, 3, 4, 6), (4, 4, 10, 10), (2, 3, 5, 12), (1, 1, 1, 1)]
)
def test_solutions_are_those_that_trying_everything_finds(numbers, task):
    assert task.solutions(asked(task, numbers)) == sorted(by_trying_everything(numbers))


def test_every_written_form_of_a_solution_is_one_mode(task):
    prompt = asked(task, (2, 3, 5, 12))
    forms = ["12/(3-5/2)", " 12 / ( 3 - 5 / 2 ) ", "(12)/((3)-(5/2))"]
    assert {task.mode(prompt, form) for form in forms} == {"12/(3-5/2)"}
    assert task.mode(prompt, "12+2*(5-3)+5+3") is None


CHEATS = {
    "a number left out": "8*3",
    "a number used twice": "3*8*8/8",
    "a number nobody gave": "24*1*1*1",
    "joined digits": "33-8-1",
    "another value": "3+3+8+8",
    "a division by zero": "8/(3-3)+8",
    "an equation": "8/(3-8/3)=24",
    "code": "__import__('os').system('true')",
    "a sign": "-3+3+8*8",
    "nothing": "",
}


@pytest.mark.parametrize("completion", CHEATS.values(), ids=CHEATS.keys())
def test_only_the_given_numbers_each_once_are_rewarded(completion, task):
    prompt = asked(task, (3, 3, 8, 8))
    assert task.reward(prompt, "8/(3-8/3)") == 1.0
    assert task.mode(prompt, completion) is None
    assert task.reward(prompt, completion) == 0.0


def test_prompts_can_be_solved_and_demonstrations_do(task):
    rng = random.Random(0)
    for split in ("train", "heldout", "warmup"):
        for prompt in task.prompts(split):
            assert prompt.n_solutions == len(task.solutions(prompt)) >= 1
            assert task.mode(prompt, task.demonstration(prompt, rng, noisy=False)) in task.solutions(prompt)
    prompt = task.prompts("train")[0]
    noisy = [task.reward(prompt, task.demonstration(prompt, rng, noisy=True)) for _ in range(200)]
    # About 1250 expressions over four numbers, of which a handful are worth 24.
    assert sum(noisy) < 20


def test_more_solutions_can_be_asked_for():
    task = Puzzle24(Puzzle24Config(**SMALL | {"min_solutions": 5, "warmup_prompts": 0, "train_prompts": 4}))
    assert min(row.n_solutions for row in task.prompts("train")) >= 5


def test_the_alphabet_covers_prompts_and_demonstrations(task):
    rng = random.Random(1)
    for prompt in task.prompts("train"):
        assert set(prompt.prompt) <= set(task.alphabet)
        assert set(task.demonstration(prompt, rng, noisy=True)) <= set(task.alphabet)
