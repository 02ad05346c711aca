"""What exact arithmetic and structure decide by themselves, and that they are right about it."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.rewards.maths import Gold, Verdict, verdict_on
from disa.rewards.maths.value import MAX_BITS, parse_exact

# No deadline an example: a busy machine is no defect.
unhurried = settings(deadline=None)
WHOLE = st.integers(-(10**12), 10**12)
POSITIVE = st.integers(1, 10**9)


@unhurried
@given(WHOLE, POSITIVE)
def test_a_fraction_is_its_value_in_every_spelling(n, d):
    for text in (
        f"\\frac{{{n}}}{{{d}}}",
        f"{n}/{d}",
        f"({n})/({d})",
        f"{n} \\div {d}",
        f"\\frac{{{2 * n}}}{{{2 * d}}}",
    ):
        assert parse_exact(text) == Fraction(n, d)


@unhurried
@given(st.decimals(-(10**9), 10**9, places=6))
def test_a_decimal_is_the_rational_it_writes(value):
    assert parse_exact(f"{value:f}") == Fraction(value)
    assert parse_exact(f"{value:,f}") == Fraction(value)


@unhurried
@given(POSITIVE, st.integers(1, 9), st.integers(2, 99))
def test_a_mixed_number_is_a_sum_and_its_sign_is_the_signs_of_both(whole, n, d):
    part = Fraction(n, n + d)
    assert parse_exact(f"{whole}\\frac{{{n}}}{{{n + d}}}") == whole + part
    assert parse_exact(f"-{whole}\\frac{{{n}}}{{{n + d}}}") == -(whole + part)


@unhurried
@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_repeating_decimal_is_the_limit_of_its_geometric_series(head, period):
    digits = len(str(period))
    assert parse_exact(f"{head}.\\overline{{{period}}}") == head + Fraction(period, 10**digits - 1)
    assert (
        parse_exact(f"{head}.5\\overline{{{period}}}") == head + Fraction(1, 2) + Fraction(period, 10**digits - 1) / 10
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2^{-3}", Fraction(1, 8)),
        ("2^3^2", 512),
        ("3!", 6),
        (r"\frac{100!}{2^{50}}", Fraction(math.factorial(100), 2**50)),
        (r"\binom{6}{2}", 15),
        (r"\frac{4 \cdot 999^{4}}{27}", Fraction(4 * 999**4, 27)),
        ("2(3)", 6),
        ("1.5 \\times 10^{3}", 1500),
        ("1.5e3", 1500),
        ("1E-2", Fraction(1, 100)),
    ],
)
def test_arithmetic_is_valued(text, value):
    assert parse_exact(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "2 3",
        "1/2(3)",
        "2\\frac{3}{2}",
        "1/0",
        "0^{-1}",
        "2^{1/2}",
        "((1)",
        "1)",
        "--1",
        "9^{9^{9^{9}}}",
        "1001!",
        "(" * 50 + "1" + ")" * 50,
        "２",
        "1_000",
        "__import__('os')",
        "2^" * 100 + "2",
    ],
)
def test_what_is_ambiguous_too_large_or_no_number_has_no_value(text):
    assert parse_exact(text) is None


@unhurried
@given(st.text(alphabet="0123456789+-*/^!(){}.,\\ ", max_size=60))
def test_no_text_raises_or_outgrows_the_limit(text):
    value = parse_exact(text)
    assert value is None or max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_BITS


CORRECT = [
    ("5", "5"),
    ("1000", "1,000"),
    ("58,500", "58500"),
    (r"11,\! 111,\! 100", "11111100"),
    (r"\$32,\!348", "32348"),
    ("0.5", r"\frac{1}{2}"),
    (r"\frac 34", "0.75"),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}^\circ"),
    (r"137 \frac{1}{2}", "137.5"),
    ("10\\%", "0.1"),
    ("0.56 = 56\\%", "56%"),
    (r"-\frac15", "-.2"),
    ("5", "x = 2+3 = 5"),
    ("90^\\circ", "90"),
    ("90", "90^{\\circ}"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"864 \mbox{ inches}^2", r"6 \text{ ft}^2"),
    ("5.4 \\text{ cents}", "\\$0.054"),
    (r"9 \text{ values}", r"9 \text{ numbers}"),
    ("8 \\text{ km/h}", "8000 \\text{ m/h}"),
    ("(1,2)", r"\left( \frac{2}{2}, 2.0 \right)"),
    ("1,2", "2, 1"),
    ("1,2", r"\{2,1\}"),
    (r"-2 \text{ or } -12", "-12 and -2"),
    ("[-2,7)", "[-2.0,7)"),
    (r"(2,\infty)", r"(2,+\infty)"),
    (r"x \in [-2,7]", "[-2, 7]"),
    ("(x,y)=(1,2)", "(1,2)"),
    (r"3 \pm 2", "1, 5"),
    (r"3 \pm 2\sqrt{2}", r"3-2\sqrt2, 3+2\sqrt2"),
    ("3:1", "6:2"),
    ("f(x)=x+1", "x+1"),
    (r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}", r"\begin{bmatrix} -\frac13 \\ 2 \end{bmatrix}"),
    ("4210_{5}", "4210_5"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(C)}", "C"),
    (r"\text{(C)}", r"\textbf{(C)}"),
    (r"\text{A,C}", "C, A"),
    ("D, E", r"\text{E and D}"),
    (r"\frac{2}{3} \approx 0.67", r"\frac23"),
    ("0.67", r"x \approx 0.67"),
]
WRONG = [
    # what math-verify alone accepts
    ("(1,2)", "1,2"),
    (r"\{1,2\}", "(1,2)"),
    ("(1,2)", r"\{1,2\}"),
    (r"\frac{1}{3}", "0.333333"),
    ("10", "10\\%"),
    ("10\\%", "10"),
    ("4210_5", "4210_6"),
    (r"\frac{2}{7}", "0.285714"),
    ("5", "6"),
    ("5", "-5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "(1,2,3)"),
    ("1,2", "1"),
    ("1,2", "1,2,2"),
    ("[0,1)", "[0,1]"),
    (r"(2,\infty)", r"(2,-\infty)"),
    ("5 \\text{ cm}", "5 \\text{ m}"),
    ("5 \\text{ cm}", "5 \\text{ cm}^2"),
    ("5 \\text{ cm}", "5 \\text{ hours}"),
    ("4:51 \\text{ p.m.}", "4:51 \\text{ a.m.}"),
    ("5", "3=5"),
    (r"\begin{pmatrix}1 \\ 2\end{pmatrix}", r"\begin{pmatrix}1 & 2\end{pmatrix}"),
    (r"\text{Evelyn}", "Angela"),
    (r"\text{(C)}", "D"),
    ("3:1", "1:3"),
    ("102", "10²"),
    ("58,500", "58.5"),
    ("5", "1,2"),
]


@pytest.mark.parametrize(("gold", "answer"), CORRECT)
def test_equal_answers_are_accepted(gold, answer):
    assert verdict_on(gold, answer) is Verdict.CORRECT


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_different_answers_are_refused(gold, answer):
    assert verdict_on(gold, answer) is Verdict.WRONG


@unhurried
@given(WHOLE, WHOLE)
def test_whole_numbers_are_equal_exactly_when_they_are(a, b):
    assert verdict_on(str(a), str(b)) is (Verdict.CORRECT if a == b else Verdict.WRONG)


def test_a_gold_answer_marked_multiple_is_a_list_even_where_commas_could_group_thousands():
    assert verdict_on(Gold("2500,750", multiple=True), "750, 2500") is Verdict.CORRECT
    assert verdict_on(Gold("2,500", multiple=True), "2500") is Verdict.WRONG
    assert verdict_on(Gold("2,500", multiple=True), "500,2") is Verdict.CORRECT
    assert verdict_on(Gold("2,500"), "2500") is Verdict.CORRECT


def test_a_unit_given_apart_counts_like_one_in_the_answer():
    area = Gold("$166$", unit="$cm^2$")
    assert verdict_on(area, "166") is Verdict.CORRECT
    assert verdict_on(area, r"166 \text{ cm}^2") is Verdict.CORRECT
    assert verdict_on(area, r"166 \text{ m}^2") is Verdict.WRONG
    assert verdict_on(area, r"0.0166 \text{ m}^2") is Verdict.CORRECT


def test_a_tolerance_is_absolute_and_includes_its_end():
    gold = Gold("4.2", unit="%", error="1e-1")
    assert [verdict_on(gold, text) for text in ("4.1", "4.3\\%", "4.2")] == [Verdict.CORRECT] * 3
    assert [verdict_on(gold, text) for text in ("4.09", "4.31\\%", "0.042")] == [Verdict.WRONG] * 3


def test_a_percent_sign_is_optional_only_where_that_is_asked_for():
    assert verdict_on("10\\%", "10", percent_optional=True) is Verdict.CORRECT
    assert verdict_on("10\\%", "0.1", percent_optional=True) is Verdict.WRONG
    assert verdict_on(Gold("10", unit="%"), "10\\%") is Verdict.CORRECT


def test_rows_of_a_data_set_become_gold_answers():
    row = {"answers": ["$69$,$84$"], "answer": "$69$,$84$", "multiple": True, "unit": None, "error": None}
    assert Gold.from_row(row) == Gold("$69$,$84$", multiple=True)
    assert Gold.from_row({"answers": ["1", "2"]}) == Gold("1, 2", multiple=True)
    assert Gold.from_row({"answer": "204"}) == Gold("204")


@pytest.mark.parametrize(
    "row", [{}, {"answer": None}, {"answer": " "}, {"answers": ["1", ""]}, {"answer": "1", "error": "x"}]
)
def test_a_row_without_a_usable_answer_is_refused(row):
    with pytest.raises(DisaError, match="field answer|field error"):
        Gold.from_row(row)
