"""The last box, or the last match of a pattern, and nothing else, is the answer."""

import time

import pytest

from disa.errors import DisaError
from disa.rewards.maths import HASHES, extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"first \boxed{4}, no: \boxed{ 5 }", "5"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"\boxed {7}", "7"),
        (r"\fbox{a}, then \boxed{b}", "b"),
        (r"\boxed{b}, then \fbox{a}", "a"),
        ("\\boxed{1\n+2}", "1\n+2"),
        (r"\boxed{\boxed{3}}", "3"),
    ],
)
def test_the_last_box_is_read_to_its_own_closing_brace(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", ["", "5", r"\boxed", r"\boxed{}", r"\boxed{ }", r"\boxed{5", r"\boxed{4} \boxed{5"])
def test_no_box_an_empty_one_and_an_open_one_are_no_answer(text):
    assert extract_answer(text) is None


def test_a_pattern_takes_its_last_match():
    assert extract_answer("6*3\n#### 17\nno\n#### 1,018 \n", HASHES) == "1,018"
    assert extract_answer(r"\boxed{5}", HASHES) is None


@pytest.mark.parametrize("pattern", ["(", "no group", "(two)(groups)"])
def test_a_pattern_without_exactly_one_group_is_refused(pattern):
    with pytest.raises(DisaError, match="maths verifier, pattern"):
        extract_answer("text", pattern)


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 300_000, "\\boxed{" + "{" * 10**6, "x" * 10**6 + "\\boxed{1}", "}" * 10**6]
)
def test_megabytes_take_no_time(text):
    start = time.perf_counter()
    extract_answer(text)
    # A linear search of a megabyte takes a millisecond; a quadratic one would take minutes.
    assert time.perf_counter() - start < 5
