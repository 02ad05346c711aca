"""Which solutions count as one kind."""

import random

import pytest

from disa.rewards.code import normal_form
from disa.rewards.maths import arithmetic_steps

LOOP = "def total(numbers):\n    result = 0\n    for n in numbers:\n        result += n\n    return result\n"


@pytest.mark.parametrize(
    "other",
    [
        LOOP.replace("numbers", "xs").replace("result", "s"),
        LOOP.replace("(numbers)", "(numbers: list[int]) -> int"),
        LOOP.replace("    result = 0", '    """Sum."""\n    result: int = 0  # start'),
        LOOP + "\nprint(total([1, 2]))\nassert total([]) == 0\n",
        LOOP + "\ncase = [1, 2]\nresult = total(case)\nfor x in case:\n    print(x)\n",
        LOOP + '\nif __name__ == "__main__":\n    print(total([1]))\n',
        "\ufeff" + LOOP,
    ],
)
def test_names_comments_annotations_and_usage_make_no_other_kind_of_program(other):
    assert normal_form(other, ["total"]) == normal_form(LOOP, ["total"])


@pytest.mark.parametrize(
    "other",
    [
        "def total(numbers):\n    return sum(numbers)\n",
        LOOP.replace("= 0", "= 1"),
        LOOP.replace("+=", "-="),
        LOOP.replace("for n in numbers:\n        result += n", "for n in numbers:\n        result = result + n"),
        LOOP.replace("return result", "return numbers"),
        LOOP.replace("total", "other"),
    ],
)
def test_another_computation_is_another_kind_of_program(other):
    assert normal_form(other, ["total"]) != normal_form(LOOP, ["total"])


def test_a_helper_may_have_any_name_and_what_is_called_keeps_its_own():
    program = "def help_me(x):\n    return x + 1\n\ndef f(x):\n    return help_me(x)\n"
    assert normal_form(program.replace("help_me", "g"), ["f"]) == normal_form(program, ["f"])
    assert "def f(" in normal_form(program, ["f"]) and "help_me" not in normal_form(program, ["f"])


def test_all_of_a_script_counts():
    script = "number = int(input())\nprint(number + 1)\n"
    assert normal_form(script) == normal_form(script.replace("number", "k")) == "v0 = int(input())\nprint(v0 + 1)"


@pytest.mark.parametrize("text", ["def f(:", "(" * 5000, "x = " + "9" * 5000, "\0", "x = " + "-" * 20_000 + "1"])
def test_what_is_no_program_is_its_own_kind(text):
    assert normal_form(text, ["f"]) == text


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("She has 16 - 3 - 4 = 9 eggs left, so 9 * $2 = $18.", "16-3 13-4 2*9"),
        ("16 eggs - 3 eggs = 13 eggs\n13 - 4 = <<13-4=9>>9\n\\(2 \\times 9 = 18\\)", "16-3 13-4 2*9"),
        ("In 2020 he had 5 + 3 = 8", "3+5"),
        ("3 + 5 = 8, again 5 + 3 = 8", "3+5"),
        ("20% of 50 = 10", "(1/5)*50"),
        ("0.2 × 50 = 10", "(1/5)*50"),
        ("\\frac{1,000}{4} = 250", "1000/4"),
        ("Total = 2 * (3 + 4)", "3+4 2*7"),
        ("3 x 4 = 12", "3*4"),
        ("x = 5", "none"),
        ("The answer is \\boxed{5}", "none"),
        ("5 / 0 = 1", "none"),
        ("2 ** 3 = 8", "none"),
    ],
)
def test_the_steps_of_a_solution_are_those_of_its_equations(text, steps):
    assert arithmetic_steps(text) == steps


def test_no_text_of_a_model_raises():
    rng = random.Random(0)
    alphabet = "0123456789+-*/=().,%$x \n\\{}frac<>"
    for _ in range(2000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(200)))
        assert arithmetic_steps(text)
        assert isinstance(normal_form(text), str)
    assert arithmetic_steps("9" * 9000 + "*" + "9" * 9000 + "=1") == "none"
    assert arithmetic_steps("(" * 10_000 + "1+1" + ")" * 10_000 + "=2") == "none"
