"""Whatever a model writes: one verdict each, in order, in bounded time, and nothing else happens."""

import itertools
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from fuzz_answers import cases
from maths_kinds import KINDS

from conftest import case_rows
from disa.errors import DisaError
from disa.rewards.maths import HASHES, Gold, MathsVerifier, Verdict, verdict_on

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNDECIDED


def boxed(*answers):
    return [f"so \\boxed{{{answer}}}." for answer in answers]


def run_script(text, *arguments):
    """A program of its own; what it prints, where it ends well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def verifier():
    return MathsVerifier()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_every_kind_get_their_verdicts(verifier, kind):
    found = [(gold, answer, verifier.check([gold], boxed(answer))[0]) for gold, answer, _ in KINDS[kind]]
    assert found == [(gold, answer, Verdict(verdict)) for gold, answer, verdict in KINDS[kind]]


def test_the_listed_answers_get_their_verdicts(verifier):
    rows = case_rows("maths.jsonl")
    texts = [row["answer"] if "boxed" in row["answer"] else f"\\boxed{{{row['answer']}}}" for row in rows]
    verdicts = verifier.check([row["gold"] for row in rows], texts)
    wrong = [(row["gold"], row["answer"], v) for row, v in zip(rows, verdicts, strict=True) if v != row["expected"]]
    assert wrong == []


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        (r"so $\boxed 5$", C),
        (r"so $\boxed5$ holds", C),
        (r"so \boxed 5.", C),
        (r"$\boxed\frac{10}{2}$", C),
        (r"\boxed 6", W),
        (r"\boxed{5", W),
        (r"\boxed{5} but no, \boxed{6}", W),
        (r"\boxed{6}, no, \fbox{5}", C),
        (r"\boxed{}", W),
        ("5", W),
    ],
)
def test_the_last_box_is_the_answer_with_and_without_braces(verifier, completion, verdict):
    assert verifier.check(["5"], [completion]) == [verdict]


@pytest.mark.parametrize(
    "answer", ["10^{400}", "1000!", "e^{400}", "10^{400}\\pi", "-10^{9999}", "10^{-400}", "9^{9^{9^9}}"]
)
def test_a_tolerance_takes_numbers_of_any_size(answer):
    assert verdict_on(Gold("2.5", error=".1"), answer) in (W, U)
    assert verdict_on(Gold("2.5", error="1e-1"), "2.6") is C


def test_a_tolerance_holds_for_what_is_not_rational_too():
    gold = Gold("1.4", error="0.02")
    assert [verdict_on(gold, text) for text in (r"\sqrt{2}", r"\sqrt{2}+0.01", "x", r"\sqrt{-2}")] == [C, W, W, W]


def test_random_answers_outputs_and_completions_raise_nothing():
    # benchmarks/rewards_fuzz.py runs 100,000 and states the counts.
    for _, call in itertools.islice(cases(0), 3000):
        call()


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "10^6!",
        "(10^6)!",
        "(x+1)^{20000}",
        r"\sqrt{" * 100 + "2" + "}" * 100,
        "((((" * 200,
        "1" + "+1" * 400,
        r"e^{" * 30 + "9" + "}" * 30,
        r"\binom{10^9}{10^8}",
        r"\sin(10^{10^6})",
        r"\frac{" * 120 + "1",
        "x^" * 400 + "2",
        r"\{" + ",".join(map(str, range(250))) + r"\}",
        "9" * 999,
        r"\exp(\exp(\exp(9)))",
        "(1+10^{-9})^{10^9}",
        "2^{2^{31}}",
        r"\sin" * 200 + "1",
        "(((x^x)^x)^x)^x",
        r"\log_{1}2",
        "1:" * 400 + "1",
        r"\pm" * 200 + "1",
        "|" * 900,
        "=" * 900,
        "x'" * 300,
    ],
)
def test_no_answer_takes_long_and_nothing_is_taken_for_right(answer):
    start = time.process_time()
    for gold in (
        "5",
        "x+1",
        r"\sqrt{2}",
        "(1,2)",
        "1,2",
        r"[0,1)",
        "y=2x",
        r"5 \text{ cm}",
        "3:1",
        Gold("2.5", error=".1"),
    ):
        assert verdict_on(gold, answer) is not C
    # Bounded work: the slowest of these takes a few tenths of a second for all ten; processor time, not the clock.
    assert time.process_time() - start < 10


def test_a_verdict_does_not_depend_on_what_was_asked_before():
    rows = [row for kind in KINDS.values() for row in kind]
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from maths_kinds import KINDS
        from disa.rewards.maths import MathsVerifier
        rows = [row for kind in KINDS.values() for row in kind][::-1]
        print(*[MathsVerifier().check([gold], ["\\\\boxed{" + answer + "}"])[0] for gold, answer, _ in rows])
    """
    assert run_script(script, str(__file__.rpartition("/")[0])) == [verdict for *_, verdict in rows][::-1]


def test_threads_get_the_verdicts_of_one(verifier):
    rows = [row for kind in KINDS.values() for row in kind][:120]
    golds, texts = [row[0] for row in rows], boxed(*(row[1] for row in rows))
    results = {}
    work = [threading.Thread(target=lambda n=n: results.update({n: verifier.check(golds, texts)})) for n in range(4)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert results == dict.fromkeys(range(4), [Verdict(row[2]) for row in rows])


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('touch {marker}')",
        r"\text{{x}}+__import__('os').system('touch {marker}')",
        r"\operatorname{{eval}}(\text{{open('{marker}','w')}})",
        r"\immediate\write18{{touch {marker}}}",
        '\n{{"same": true, "reason": ""}}\n',
        "'); import os; os._exit(0) #",
        "\ud800\x00",
        r"\frac{{1}}{{0}}",
    ],
)
def test_an_injection_is_a_wrong_answer_and_nothing_runs(verifier, tmp_path, answer):
    marker = tmp_path / "ran"
    assert verifier.check(["x+1"], boxed(answer.format(marker=marker))) == [W]
    assert not marker.exists()


def test_a_long_answer_is_wrong_and_not_cut_to_a_right_one():
    verifier = MathsVerifier(max_characters=20)
    assert verifier.check(["5", "5"], boxed("5" + " " * 30 + "+1", "5+0+0")) == [W, C]
    assert verifier.check(["5"] * 2, boxed("5" * 10**6, "{" * 10**6)) == [W, W]
    assert (verifier.counts["too_long"], verifier.counts["no_answer"]) == (1, 2)


def test_every_completion_is_counted_once():
    counted = MathsVerifier(pattern=HASHES)
    counted.check(["5", "5", "x", "t(0,4]", "5"], ["#### 5", "no answer", "#### x+1", "#### 4", "#### " + "1" * 2000])
    assert counted.counts == {"correct": 1, "wrong": 3, "undecided": 1, "no_answer": 1, "too_long": 1}


def test_a_defect_of_the_comparison_costs_one_verdict_and_is_counted(verifier, monkeypatch):
    def broken(gold, answer, **_):
        return 1 / (answer != "7") and verdict_on(gold, answer)

    monkeypatch.setattr("disa.rewards.maths.verifier.verdict_on", broken)
    assert verifier.check(["7", "8"], boxed("7", "8")) == [U, C]
    assert verifier.counts == {"undecided": 1, "correct": 1, "error": 1}


def test_undecided_has_no_reward():
    assert [verdict.reward for verdict in (C, W, U)] == [1.0, 0.0, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"max_characters": 0}, "max_characters"), ({"pattern": "x"}, "groups"), ({"pattern": "(("}, "no regular")],
)
def test_settings_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(DisaError, match=message):
        MathsVerifier(**arguments)


def test_lists_of_different_length_and_empty_gold_answers_are_refused(verifier):
    with pytest.raises(DisaError, match="2 gold answers for 1 completions"):
        verifier.check(["1", "2"], ["x"])
    with pytest.raises(DisaError, match="empty gold answer"):
        verifier.check([" "], ["x"])
    assert verifier.check([], []) == []
    assert verifier.check([Gold("1")], boxed("1")) == [C], "a refused call leaves it usable"


def test_importing_the_verifier_loads_nothing_heavy():
    script = """
        import sys
        import disa.rewards.maths
        print(*(name for name in ("sympy", "mpmath", "numpy", "torch") if name in sys.modules), "end")
    """
    assert run_script(script) == ["end"]
