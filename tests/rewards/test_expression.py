"""Expressions of a model: parsed strictly and fast, valued exactly, one form for all rewritings."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.rewards.expression import (
    MAX_CHARACTERS,
    canonical_form,
    chain_operands,
    expression_numbers,
    expression_value,
    parse_expression,
)

# A parse of the longest text that is looked at takes about a millisecond; a second leaves room for a busy machine
# and is far below what a parser needs that looks at a megabyte, nests without bound or computes a power.
SECONDS = 1.0

EXPRESSIONS = st.recursive(
    st.integers(1, 9), lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner), max_leaves=6
)


def written(expression):
    """Every operation in parentheses: text whose parse needs no rule of precedence."""
    if isinstance(expression, int):
        return str(expression)
    return f"({written(expression[1])}{expression[0]}{written(expression[2])})"


def rewritings(expression):
    """All expressions one law away: a+b = b+a, (a+b)+c = a+(b+c), a+(b-c) = (a+b)-c, a-(b-c) = (a+c)-b, ..."""
    if isinstance(expression, int):
        return
    o, a, b = expression
    if o in "+*":
        yield (o, b, a)
    plus, minus = ("+", "-") if o in "+-" else ("*", "/")
    if not isinstance(b, int) and b[0] in (plus, minus):
        # a + (b1 - b2) = (a + b1) - b2 and a - (b1 - b2) = (a - b1) + b2
        turned = {plus: minus, minus: plus}
        yield (b[0] if o == plus else turned[b[0]], (o, a, b[1]), b[2])
    if not isinstance(a, int) and a[0] in (plus, minus):
        yield (a[0], (o, a[1], b), a[2])  # (a1 - a2) + b = (a1 + b) - a2
    yield from ((o, other, b) for other in rewritings(a))
    yield from ((o, a, other) for other in rewritings(b))


def normal_form(expression):
    """The same classes by another road: chains as nested sorted tuples, each operand with its sign."""
    if isinstance(expression, int):
        return ("leaf", expression)
    kind = "+" if expression[0] in "+-" else "*"

    def operands(node, sign):
        if isinstance(node, int) or node[0] not in ("+-" if kind == "+" else "*/"):
            return [(sign, normal_form(node))]
        inner = sign if node[0] in "+*" else -sign
        return operands(node[1], sign) + operands(node[2], inner)

    return (kind, tuple(sorted(operands(expression, 1), key=repr)))


@given(EXPRESSIONS, st.data())
def test_rewriting_by_commutativity_and_associativity_keeps_the_form_and_the_value(expression, data):
    rewritten = expression
    for _ in range(5):
        options = list(rewritings(rewritten))
        if options:
            rewritten = data.draw(st.sampled_from(options))
    assert canonical_form(rewritten) == canonical_form(expression)
    # Rewriting may move a division by zero out of sight, never change a value.
    if expression_value(expression) is not None and expression_value(rewritten) is not None:
        assert expression_value(rewritten) == expression_value(expression)


@given(EXPRESSIONS, EXPRESSIONS)
def test_two_expressions_share_a_form_exactly_when_their_chains_have_the_same_operands(a, b):
    assert (canonical_form(a) == canonical_form(b)) == (normal_form(a) == normal_form(b))


@given(EXPRESSIONS)
def test_the_form_reads_back_as_an_expression_of_the_same_form_leaves_and_value(expression):
    again = parse_expression(canonical_form(expression))
    assert canonical_form(again) == canonical_form(expression)
    assert sorted(expression_numbers(again)) == sorted(expression_numbers(expression))
    if expression_value(expression) is not None:
        assert expression_value(again) == expression_value(expression)


@given(EXPRESSIONS)
def test_written_expressions_parse_to_themselves_and_have_the_value_python_gives(expression):
    text = written(expression)
    assert parse_expression(text) == expression
    assert parse_expression(f"  {text.replace('+', ' + ')}\n") == expression
    try:
        # Our own text with our own numbers: the one place where evaluating is an independent check.
        expected = eval(text.translate({ord(str(d)): f"Fraction({d})" for d in range(1, 10)}), {"Fraction": Fraction})
    except ZeroDivisionError:
        expected = None
    assert expression_value(expression) == expected


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("1-(2-3)", "3+1-2", True),
        ("2*3/4", "3/4*2", True),
        ("8/(4/2)", "2*8/4", True),
        ("1*(2+3)", "1*2+1*3", False),  # distributivity is not rewriting
        ("(1-2)*(3-4)", "(2-1)*(4-3)", False),  # nor are two signs that cancel
        ("3-1", "1-3", False),
        ("2*1", "2/1", False),
        ("1+23", "12+3", False),
    ],
)
def test_which_expressions_count_as_one(a, b, same):
    assert (canonical_form(parse_expression(a)) == canonical_form(parse_expression(b))) is same


def test_flatten_separates_plain_from_inverted_operands():
    assert chain_operands(parse_expression("1-(2-3*4)"), "+") == ([1, ("*", 3, 4)], [2])
    assert chain_operands(parse_expression("8/(4/2)"), "*") == ([8, 2], [4])
    assert chain_operands(parse_expression("8/(4/2)"), "+") == ([("/", 8, ("/", 4, 2))], [])


@pytest.mark.parametrize("text", ["1/0", "1/(2-2)", "3*(1/(1-1))", "0/0", "1/(1/(2-2))"])
def test_division_by_zero_anywhere_has_no_value(text):
    assert expression_value(parse_expression(text)) is None


@pytest.mark.parametrize("operators, accepted", [("+", "+"), ("+-", "+-"), ("+-*", "+-*"), ("+-*/", "+-*/")])
def test_operators_the_task_does_not_allow_are_not_parsed(operators, accepted):
    parsed = {o for o in "+-*/" if parse_expression(f"6{o}3", operators) is not None}
    assert parsed == set(accepted)


HOSTILE = {
    "code": "__import__('os').system('true')",
    "attribute": "(1).__class__",
    "call": "1(2)",
    "lambda": "(lambda: 1)()",
    "power": "9**9**9**9",
    "power chain": "**".join(["9"] * 60),
    "floor division": "7//2",
    "remainder": "7%2",
    "shift": "1<<99999999",
    "bitwise": "1|2",
    "comparison": "1==1",
    "sign": "-1+2",
    "plus sign": "+1",
    "double sign": "1--1",
    "complement": "~1",
    "float": "1.0+2",
    "exponent": "1e999",
    "complex": "1j",
    "hexadecimal": "0xff",
    "underscores": "1_000",
    "leading zero": "007",
    "implied product": "2(3)",
    "implied product of parentheses": "(2)(3)",
    "two numbers": "1 2",
    "tuple": "1,2",
    "list": "[1]",
    "string": "'1'",
    "comment": "1+2#3",
    "assignment": "x:=1",
    "newline": "1+\n2",
    "tab": "1\t+2",
    "null": "1+2\0",
    "arabic digits": "\u0661+\u0662",
    "full-width digits": "\uff11\uff0b\uff12",
    "superscript": "2\u00b2",
    "minus sign of typography": "3\u22121",
    "multiplication sign": "2\u00d73",
    "no-break space": "1\u00a0+2",
    "surrogate": "1+2\ud800",
    "empty": "",
    "spaces": "   ",
    "empty parentheses": "()",
    "open": "(1+2",
    "closed": "1+2)",
    "operator only": "+",
    "unfinished": "1+",
    "megabyte of digits": "9" * 1_000_000,
    "megabyte of spaces": " " * 1_000_000,
    "megabyte of parentheses": "(" * 1_000_000,
    "megabyte of sums": "1+" * 500_000 + "1",
    "deepest open": "(" * MAX_CHARACTERS,
    "deepest signs": "-" * (MAX_CHARACTERS - 1) + "1",
    "open groups": "(1+" * (MAX_CHARACTERS // 3),
    "open products": "(1*" * (MAX_CHARACTERS // 3),
    "calls of calls": "1" + "(1" * 60 + ")" * 60,
    "huge number": "9" * (MAX_CHARACTERS + 1),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_no_expression_and_costs_no_time(text):
    start = time.perf_counter()
    assert parse_expression(text) is None
    assert time.perf_counter() - start < SECONDS


@settings(max_examples=300, deadline=SECONDS * 1000)
@given(st.text("0123456789+-*/() ", max_size=2 * MAX_CHARACTERS) | st.text(max_size=60))
def test_any_text_parses_or_gives_none_without_raising_and_parsed_text_has_a_form(text):
    expression = parse_expression(text)
    if expression is not None:
        assert canonical_form(parse_expression(canonical_form(expression))) == canonical_form(expression)
        expression_value(expression)


@pytest.mark.parametrize(
    "text",
    [
        "+".join(["1"] * ((MAX_CHARACTERS + 1) // 2)),
        "(" * 99 + "1" + ")" * 99,
        "(1+" * 49 + "1" + ")" * 49,
        "9" * MAX_CHARACTERS,
        "9" * 99 + "*" + "9" * 99,
        "/".join(["9"] * 100),
    ],
    ids=["sum", "parentheses", "nested sums", "digits", "product", "quotients"],
)
def test_the_largest_accepted_expressions_are_valued_exactly_and_fast(text):
    assert len(text) <= MAX_CHARACTERS
    start = time.perf_counter()
    expression = parse_expression(text)
    assert expression_value(expression) is not None
    assert canonical_form(parse_expression(canonical_form(expression)[:MAX_CHARACTERS])) is not None
    assert time.perf_counter() - start < SECONDS


def test_one_character_more_than_the_limit_is_not_looked_at_but_spaces_around_do_not_count():
    longest = "1+" * (MAX_CHARACTERS // 2 - 1) + "10"
    assert len(longest) == MAX_CHARACTERS
    assert parse_expression(longest) is not None
    assert parse_expression(f" {longest} ") is not None
    assert parse_expression(longest + "0") is None
