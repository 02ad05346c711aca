"""Whatever a model writes: one verdict each, in order, in time, and nothing else is harmed."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from disa.errors import DisaError
from disa.rewards.maths import HASHES, Gold, MathsVerifier, Verdict, pool

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNDECIDED
# Symbolic comparisons take milliseconds; on a machine busy with other work, an honest one must still make it.
PATIENCE_S = 120.0
HANG = r"9^{9^{9^{9}}}"


def boxed(*answers):
    return [f"so \\boxed{{{answer}}}." for answer in answers]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def run_script(text, *arguments):
    """A program of its own; what it prints, where it ends well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def verifier():
    with MathsVerifier(workers=1, deadline_s=PATIENCE_S) as shared:
        yield shared


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\sqrt{2}", r"\frac{2}{\sqrt{2}}", C),
        (r"\sqrt{2}", "1.41421356237", W),
        (r"\pi", r"\frac{22}{7}", W),
        ("2n-2", "2(n-1)", C),
        ("3R^2", "3r^2", W),
        ("6m", "6", W),
        ("5", r"\sqrt{25}", C),
        ("5", "unknown", W),
        ("23", "2 3", W),
        ("12", "1\u200b2", W),
        ("12", "１２", W),
        (r"\{1\pm\sqrt{5},-2\}", r"-2, 1-\sqrt5, 1+\sqrt{5}", C),
        (r"\{1\pm\sqrt{5},-2\}", r"-2, 1-\sqrt5, 2+\sqrt{5}", W),
        (r"(\sqrt{8}, 1)", r"(2\sqrt2, 1)", C),
        (r"(\sqrt{8}, 1)", r"(1, 2\sqrt2)", W),
        (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)", C),
        (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2]\cup(3,\infty)", W),
        ("[-2,7]", r"-2 \le x \le 7", C),
        ("[-2,7]", r"-2 < x < 7", W),
        (r"y = -\frac{5}{2} x - \frac{29}{4}", "10x+4y+29=0", C),
        (r"2\sqrt{3}\text{ m}", r"200\sqrt{3}\text{ cm}", C),
        (r"2\sqrt{3}\text{ m}", r"2\sqrt{3}\text{ cm}", W),
        (r"10^{-20}\sqrt{2}", "0", W),
        (r"\frac{189}{2}\sqrt{3}", r"94.5\sqrt{3}", C),
        ("x=5", "y=5", W),
        ("x", "2x-x", C),
        ("R", "r", W),
        ("5", r"x \not= 5", W),
        ("5", r"5 \text{ or 6}", W),
        ("5", r"5 \text{ (maybe 6)}", W),
        ("5", "x \\in " * 50 + "5", W),
        # the gold answer has no meaning: only itself is accepted
        (r"t(0,4]", r"t(0,4]", C),
        (r"t(0,4]", r"(0,4]", U),
    ],
)
def test_symbolic_comparison_decides_what_exact_arithmetic_leaves_open(verifier, gold, answer, verdict):
    assert verifier.check([gold], boxed(answer)) == [verdict]


def test_a_hang_costs_its_own_verdict_and_the_order_stays():
    golds = [r"\sqrt{2}", "7", r"\sqrt{2}", "x+1", r"\sqrt{2}", "7"]
    answers = [r"\frac{2}{\sqrt{2}}", "7", HANG, "1+x", r"\sqrt{3}", "8"]
    with MathsVerifier(workers=2, deadline_s=PATIENCE_S) as verifier:
        # Both workers up and familiar with the formulas, so that only the hang can miss a short deadline.
        verifier.check(golds * 2, boxed(*(answer for answer in answers * 2 if answer != HANG), "1", "1"))
        verifier.counts.clear()
        verifier._pool._deadline_s = 3.0
        start = time.monotonic()
        found = verifier.check(golds, boxed(*answers))
        took = time.monotonic() - start
    assert found == [C, C, U, C, W, W]
    assert (verifier.counts["deadline"], verifier.counts["undecided"], verifier.counts["crash"]) == (1, 1, 0)
    # No later than the deadline, and the time for a worker to start on a busy machine.
    assert 3.0 <= took < 3.0 + PATIENCE_S


def test_equal_answers_to_one_problem_are_asked_once():
    with MathsVerifier(workers=1, deadline_s=2.0) as verifier:
        start = time.monotonic()
        assert verifier.check([r"\sqrt{2}"] * 20, boxed(*[HANG] * 20)) == [U] * 20
        assert time.monotonic() - start < 20 * 2.0
    assert verifier.counts == {"undecided": 20, "deadline": 20}


def test_a_killed_worker_costs_its_own_verdict():
    with MathsVerifier(workers=1, deadline_s=PATIENCE_S) as verifier:
        verifier.check([r"\sqrt{2}"], boxed(r"\frac{2}{\sqrt2}"))
        (victim,) = verifier._pool.processes()
        timer = threading.Timer(1.0, os.kill, (victim, 9))
        timer.start()
        assert verifier.check([r"\sqrt{2}", r"\sqrt{2}"], boxed(HANG, r"\frac{2}{\sqrt2}")) == [U, C]
        timer.join()
    assert (verifier.counts["crash"], verifier.counts["deadline"]) == (1, 0)


def test_threads_take_turns():
    results = {}
    with MathsVerifier(workers=2, deadline_s=PATIENCE_S) as verifier:

        def work(number):
            answers = boxed(*(f"{number}+0\\cdot\\sqrt{{{k + 2}}}" for k in range(5)))
            results[number] = verifier.check([str(number)] * 4 + ["-1"], answers)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == dict.fromkeys(range(4), [C, C, C, C, W])


def test_closing_ends_the_processes_and_a_later_check_starts_new_ones():
    verifier = MathsVerifier(workers=1, deadline_s=PATIENCE_S)
    assert verifier.check(["5"], boxed("5")) == [C]
    assert verifier._pool.processes() == [], "an exact check needs no worker"
    verifier.check(["x"], boxed("2x-x"))
    before = verifier._pool.processes()
    verifier.close()
    assert not any(map(alive, before))
    with verifier:
        assert verifier.check(["x"], boxed("2x-x")) == [C]
        after = verifier._pool.processes()
    assert len(after) == 1 and not any(map(alive, after))


def test_an_interrupted_check_leaves_no_reply_for_the_next(monkeypatch):
    with MathsVerifier(workers=1, deadline_s=PATIENCE_S) as verifier:
        verifier.check(["x"], boxed("2x-x"))

        def interrupt(self):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pool.WorkerPool, "_collect", interrupt)
            with pytest.raises(KeyboardInterrupt):
                verifier.check(["x"], boxed("3x-2x"))
        assert verifier.check(["x"], boxed("x+1-0")) == [W]


def test_a_script_without_a_main_guard_and_a_fork_of_it_can_use_a_verifier(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom disa.rewards.maths import MathsVerifier\n"
        f"v = MathsVerifier(workers=1, deadline_s={PATIENCE_S})\n"
        "ask = lambda: v.check(['x'], ['\\\\boxed{2x-x}'])[0]\n"
        "first = ask()\nchild = os.fork()\nprint(first, ask(), flush=True)\n"
        "if child:\n    assert os.waitpid(child, 0)[1] == 0\n    print(ask())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.split()) == (0, ["correct"] * 5), done.stderr


def test_a_worker_does_not_outlive_a_killed_caller():
    script = """
        import os
        from disa.rewards.maths import MathsVerifier
        verifier = MathsVerifier(workers=1)
        verifier.check(["x"], ["\\\\boxed{2x-x}"])
        print(*verifier._pool.processes(), flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=200)
    (worker,) = map(int, done.stdout.split())
    until = time.monotonic() + PATIENCE_S
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(worker)


def test_a_worker_refuses_network_programs_files_and_evaluation_of_text(tmp_path):
    script = """
        import os, socket, subprocess, sympy, sys
        from disa.rewards.maths import worker
        worker.lock_down()
        for attempt in (
            lambda: socket.create_connection(("127.0.0.1", 9)),
            lambda: socket.socket().bind(("127.0.0.1", 0)),
            lambda: subprocess.run(["true"]),
            lambda: os.system("true"),
            lambda: os.fork(),
            lambda: os.execv("/bin/true", ["true"]),
            lambda: sympy.sympify("1+1"),
            lambda: sympy.Number("1"),
            lambda: open(sys.argv[1], "w"),
            lambda: open(sys.argv[1], "a"),
        ):
            try:
                attempt()
                print("done")
            except worker.ForbiddenError:
                print("refused")
    """
    assert run_script(script, str(tmp_path / "file")) == ["refused"] * 10
    assert not (tmp_path / "file").exists()


def test_a_workers_memory_and_processor_time_end():
    script = """
        import resource
        from disa.rewards.maths import worker
        worker.limit(512)
        worker.limit_processor_time(5)
        print(resource.getrlimit(resource.RLIMIT_CPU)[0] <= 8)
        try:
            bytearray(2**30)
        except MemoryError:
            print("refused")
    """
    assert run_script(script) == ["True", "refused"]


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


@pytest.mark.parametrize("text", ["(" * 300, r"\sqrt{" * 50 + "2" + "}" * 50, r"\{" * 150, "1" + "+1" * 150, "^" * 900])
def test_deep_nesting_is_never_taken_for_right_and_harms_nothing(verifier, text):
    assert verifier.check(["x+1", "x+1"], boxed(text, "1+x"))[1] == C
    assert verifier.check(["x+1"], boxed(text))[0] in (W, U)


def test_a_long_answer_is_wrong_and_not_cut_to_a_right_one():
    with MathsVerifier(max_characters=20) as verifier:
        assert verifier.check(["5", "5"], boxed("5" + " " * 30 + "+1", "5+0+0")) == [W, C]
        assert verifier.check(["5"] * 2, boxed("5" * 10**6, "{" * 10**6)) == [W, W]
        assert (verifier.counts["too_long"], verifier.counts["no_answer"]) == (1, 2)


def test_every_completion_is_counted_once(verifier):
    with MathsVerifier(workers=1, deadline_s=PATIENCE_S, pattern=HASHES) as counted:
        counted.check(["5", "5", "x", "t(0,4]"], ["#### 5", "no answer", "#### x+1", "#### 4"])
    verdicts = {name: counted.counts[name] for name in ("correct", "wrong", "undecided")}
    assert verdicts == {"correct": 1, "wrong": 2, "undecided": 1}
    assert {k: v for k, v in counted.counts.items() if k not in verdicts} == {
        "exact": 1,
        "no_answer": 1,
        "symbolic": 1,
        "gold": 1,
    }


def test_undecided_has_no_reward():
    assert [verdict.reward for verdict in (C, W, U)] == [1.0, 0.0, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"workers": 0}, "workers"), ({"deadline_s": 0}, "deadline_s"), ({"pattern": "x"}, "pattern")],
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


def test_a_missing_math_verify_is_named_with_its_fix(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named math_verify')")
    usual = pool._python_path()
    monkeypatch.setattr(pool, "_python_path", lambda: f"{tmp_path}{os.pathsep}{usual}")
    with MathsVerifier(workers=1) as verifier, pytest.raises(DisaError, match="math_verify.*pip install 'math-verify"):
        verifier.check(["x"], boxed("2x-x"))


def test_importing_the_verifier_loads_nothing_heavy():
    script = """
        import sys
        import disa.rewards.maths
        print(*(name for name in ("sympy", "math_verify", "numpy", "torch", "antlr4") if name in sys.modules), "end")
    """
    assert run_script(script) == ["end"]
