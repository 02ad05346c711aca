"""A benchmark's rows are recognised by file or by content, refused where they differ, and never vouched for blindly."""

import base64
import hashlib
import io
import json
import pickle
import re
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disa.errors import DisaError
from disa.tasks import SPLITS, judges, make_task
from disa.tasks.benchmarks import BENCHMARKS, BenchmarkContents, PublishedBenchmark, rows_digest, verify_benchmark
from disa.tasks.dataset_config import DatasetConfig, SourceConfig
from disa.tasks.rows import read_problem
from disa.tasks.sources import RawRow

ROWS = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n), "id": f"t/{n}"} for n in range(5)]
DIGEST = rows_digest((row["problem"], json.dumps([row["answer"]])) for row in ROWS)
HEX = re.compile(r"[0-9a-f]{64}")


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def entry(**changes):
    values = {
        "hub": "org/sums",
        "revision": "0" * 40,
        "files": {"test.jsonl": hashlib.sha256(lines(ROWS).encode()).hexdigest()},
        "licence": "MIT",
        "contents": (BenchmarkContents(5, DIGEST, "the published rows"),),
        "columns": {"prompt": "problem"},
    }
    return PublishedBenchmark(**values | changes)


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """Register a benchmark ``sums``; returns the report of a file with the given rows standing in for it."""

    def load(rows, columns=None, **changes):
        monkeypatch.setitem(BENCHMARKS, "sums", entry(**changes))
        path = tmp_path / "mine.jsonl"
        path.write_text(lines(rows))
        source = SourceConfig(benchmark="sums", path=str(path), columns=columns or {})
        task = make_task(DatasetConfig(name="dataset", sources=(source,)))
        assert task.prompts("heldout")
        return task.data_report().facts["sources"][0]

    return load


def test_the_published_file_is_recognised_by_its_bytes(sums):
    facts = sums(ROWS, contents=(BenchmarkContents(5, None, "not seen"),))
    assert facts["checked"] == "verified: SHA-256 of the published files"
    assert (facts["hub"], facts["licence"], facts["rows"]) == ("org/sums", "MIT", 5)


def test_the_same_rows_in_another_form_are_recognised_by_their_content(sums):
    renamed = [{"question": r["problem"].replace(" ", "  ") + "\n", "gold": int(r["answer"])} for r in ROWS[::-1]]
    facts = sums(renamed, {"prompt": "question", "answer": "gold"})
    assert facts["checked"] == "verified: digest of the published rows"
    assert facts["digest"] == DIGEST


CHANGED = {
    "an answer": [*ROWS[:4], ROWS[4] | {"answer": "9"}],
    "a problem": [*ROWS[:4], ROWS[4] | {"problem": "What is 4 - 4?"}],
    "two answers exchanged": [ROWS[0] | {"answer": "2"}, ROWS[1] | {"answer": "0"}, *ROWS[2:]],
    "a row twice": [*ROWS[:4], ROWS[0]],
}


@pytest.mark.parametrize("rows", CHANGED.values(), ids=CHANGED.keys())
def test_other_rows_are_refused(rows, sums):
    with pytest.raises(DisaError, match="benchmark sums: the rows are not those of sums") as caught:
        sums(rows)
    assert "Fix: " in str(caught.value)


@pytest.mark.parametrize("rows", [ROWS[:4], [*ROWS, {"problem": "more?", "answer": "1"}]])
def test_another_number_of_rows_is_refused_also_where_no_digest_is_known(rows, sums):
    with pytest.raises(DisaError, match=f"{len(rows)} rows found, sums has 5"):
        sums(rows, contents=(BenchmarkContents(5, None, "not seen"),), files={"test.jsonl": None})


def test_rows_nobody_has_seen_are_said_to_be_unverified_with_what_was_found(sums):
    facts = sums(ROWS, contents=(BenchmarkContents(5, None, "not seen"),), files={"test.jsonl": None})
    assert facts["checked"].startswith("not verified: 5 rows as expected")
    assert facts["checked"].endswith(DIGEST)


def test_a_known_copy_vouches_beside_unseen_published_rows(sums):
    contents = (BenchmarkContents(6, None, "not seen"), BenchmarkContents(5, DIGEST, "a copy"))
    assert sums(ROWS, contents=contents, files={"test.jsonl": None})["checked"] == "verified: digest of a copy"
    with pytest.raises(DisaError, match="4 rows found, sums has 6 or 5"):
        sums(ROWS[:4], contents=contents)
    with pytest.raises(DisaError, match="the rows are not those of sums"):
        sums(CHANGED["an answer"], contents=contents)


def test_a_file_digest_vouches_only_where_every_file_is_known():
    files = {"a.jsonl": "0" * 64, "b.jsonl": None}
    BENCHMARKS["two"] = entry(files=files, contents=(BenchmarkContents(5, None, "not seen"),))
    try:
        found = verify_benchmark(
            "two", {"a.jsonl": "0" * 64, "b.jsonl": "1" * 64}, 5, DIGEST, from_hub=True, where="two"
        )
    finally:
        del BENCHMARKS["two"]
    assert found.startswith("not verified")


def test_without_a_path_the_published_files_are_fetched_at_their_revision(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    (tmp_path / "one.jsonl").write_text(lines(ROWS[:2]))
    pq.write_table(pa.Table.from_pylist(ROWS[2:]), tmp_path / "two.parquet")

    def fetch(repo, file, *, repo_type, revision):
        asked.append((repo, file, repo_type, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setitem(BENCHMARKS, "sums", entry(files={"one.jsonl": None, "two.parquet": None}))
    task = make_task(DatasetConfig(name="dataset", sources=(SourceConfig(benchmark="sums"),)))
    assert [json.loads(row.payload)["row"] for row in task.prompts("heldout")] == [f"t/{n}" for n in range(5)]
    assert asked == [("org/sums", f, "dataset", "0" * 40) for f in ("one.jsonl", "two.parquet")]
    assert task.data_report().facts["sources"][0]["checked"] == "verified: digest of the published rows"
    assert {split: len(task.prompts(split)) for split in SPLITS} == dict.fromkeys(SPLITS, 0) | {"heldout": 5}


def test_files_of_the_hub_that_are_not_the_pinned_ones_are_refused_also_where_no_rows_digest_is_known(
    tmp_path, monkeypatch
):
    import huggingface_hub

    (tmp_path / "test.jsonl").write_text(lines(CHANGED["an answer"]))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "test.jsonl"))
    monkeypatch.setitem(BENCHMARKS, "sums", entry(contents=(BenchmarkContents(5, None, "not seen"),)))
    task = make_task(DatasetConfig(name="dataset", sources=(SourceConfig(benchmark="sums"),)))
    with pytest.raises(DisaError, match="the rows are not those of sums"):
        task.prompts("heldout")
    (tmp_path / "test.jsonl").write_text(lines(ROWS))
    task = make_task(DatasetConfig(name="dataset", sources=(SourceConfig(benchmark="sums"),)))
    assert task.prompts("heldout")


NAMES = "aime2024 aime2025 amc2023 math500 minerva_math olympiadbench gsm8k dapo_math_17k humaneval humaneval_plus mbpp"


def test_the_table_has_every_benchmark_promised():
    assert set(NAMES.split()) | {"livecodebench"} <= set(BENCHMARKS)
    assert {BENCHMARKS[n].use for n in BENCHMARKS} == {"heldout", "train"}
    assert [n for n, b in BENCHMARKS.items() if b.use == "train"] == ["gsm8k_train", "dapo_math_17k"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_entry_is_whole_and_its_digests_have_the_form_of_digests(name):
    benchmark = BENCHMARKS[name]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", benchmark.hub)
    assert benchmark.licence and benchmark.contents and benchmark.files
    digests = [*benchmark.files.values(), *(c.digest for c in benchmark.contents)]
    assert all(d is None or HEX.fullmatch(d) for d in digests)
    # main may move: then only a digest, or the words "not verified", stand for the rows.
    assert re.fullmatch("[0-9a-f]{40}|main", benchmark.revision)
    assert "{prompt}" in benchmark.prompt_template
    assert benchmark.verifier in ("maths", "code")
    assert all(re.search("[.](jsonl|parquet)$", file) for file in benchmark.files)


def test_no_two_known_contents_are_the_same_rows():
    digests = [c.digest for b in BENCHMARKS.values() for c in b.contents if c.digest]
    assert len(digests) == len(set(digests)) == 12


# One row a format, as the published files have it.
PUBLISHED = {
    "gsm8k": ({"question": "q", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}, {"answers": ["4"]}),
    "aime2024": ({"id": 60, "problem": "q", "solution": "so", "answer": "204", "year": "2024"}, {"answers": ["204"]}),
    "aime2025": ({"problem": "q", "answer": 70, "id": "0"}, {"answers": ["70"]}),
    "amc2023": ({"id": 0, "question": "q", "answer": 27.0, "url": "u"}, {"answers": ["27"]}),
    "math500": (
        {"problem": "q", "solution": "so", "answer": "\\frac{1}{2}", "unique_id": "u"},
        {"answers": ["\\frac{1}{2}"]},
    ),
    "minerva_math": ({"question": "q", "answer": "1.6"}, {"answers": ["1.6"]}),
    "olympiadbench": (
        {"id": 1, "question": "q", "context": None, "final_answer": ["1,3"], "is_multiple_answer": True, "unit": None},
        {"answers": ["1,3"], "multiple": True},
    ),
    "dapo_math_17k": ({"prompt": "q", "solution": "34", "data_source": "math_dapo"}, {"answers": ["34"]}),
    "humaneval": (
        {
            "task_id": "HumanEval/0",
            "prompt": "q",
            "entry_point": "f",
            "test": "def check(c): pass",
            "canonical_solution": "s",
        },
        {"kind": "humaneval", "prompt": "q", "entry_point": "f", "test": "def check(c): pass"},
    ),
    "mbpp": (
        {
            "task_id": 2,
            "prompt": "q",
            "code": "def f(): pass",
            "test_imports": ["import math"],
            "test_list": ["assert f() is None"],
        },
        {
            "kind": "assertions",
            "tests": ["assert f() is None"],
            "test_imports": ["import math"],
            "code": "def f(): pass",
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row_is_read_under_its_entrys_mapping(name):
    values, gold = PUBLISHED[name]
    problem = read_problem(SourceConfig(benchmark=name), RawRow(values, 0, "row 0"))
    assert problem.gold == gold
    assert problem.text == "q"
    assert "q" in problem.prompt and "{" not in problem.prompt.replace("\\boxed{}", "")
    assert problem.row_id == str(values.get("task_id") or values.get("unique_id") or values.get("id", 0))
    if name == "mbpp":
        assert "assert f() is None" in problem.prompt
    # DAPO's column of that name holds the answer alone.
    worked = {"gsm8k": values.get("answer"), "mbpp": "def f(): pass", "humaneval": "s", "dapo_math_17k": None}
    assert problem.solution == worked.get(name, values.get("solution"))


def packed(cases):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def contest(cases, starter="", name=None):
    """A LiveCodeBench row as published: public tests as JSON, private ones packed."""
    return {
        "question_id": "abc_a",
        "question_content": "Add them.",
        "starter_code": starter,
        "public_test_cases": json.dumps(cases[:1]),
        "private_test_cases": packed(cases[1:]),
        "metadata": json.dumps({"func_name": name} if name else {}),
    }


STDIO = [
    {"input": "1 2\n", "output": "3\n", "testtype": "stdin"},
    {"input": "5 5\n", "output": "10\n", "testtype": "stdin"},
]
CALLS = [
    {"input": "[1, 2]\n3", "output": "6", "testtype": "functional"},
    {"input": "[]\n0", "output": "0", "testtype": "functional"},
]


def test_contest_tests_stay_packed_until_a_program_is_judged():
    source = SourceConfig(benchmark="livecodebench")
    problem = read_problem(source, RawRow(contest(STDIO), 0, "row 0"))
    assert problem.row_id == "abc_a" and "standard input" in problem.prompt
    assert problem.gold["private_test_cases"] == packed(STDIO[1:])
    program = judges.program_of(problem.gold, "print(3)")
    assert program.tests.cases == (("1 2\n", "3\n"), ("5 5\n", "10\n"))
    problem = read_problem(source, RawRow(contest(CALLS, "class Solution: ...", "add"), 0, "row 0"))
    assert "class Solution: ..." in problem.prompt and "standard input" not in problem.prompt
    program = judges.program_of(problem.gold, "class Solution: ...")
    assert program.tests.names == ("add",)
    assert [re.search(r"add\(\*(.*)\)\) == _lists\((.*)\)", s).groups() for s in program.tests.statements] == [
        ("[[1, 2], 3]", "6"),
        ("[[], 0]", "0"),
    ]


class _Runs:
    def __reduce__(self):
        return (print, ("executed",))


def test_packed_tests_that_would_run_code_are_refused(capsys):
    hostile = base64.b64encode(zlib.compress(pickle.dumps(_Runs()))).decode()
    with pytest.raises(DisaError, match="builtins.print, and only text is read"):
        judges.unpack_tests(hostile)
    # A protocol 0 stream with a global, as old exploits have it.
    old = io.BytesIO()
    pickle.dump(_Runs(), old, protocol=0)
    with pytest.raises(DisaError, match="cannot be unpacked"):
        judges.unpack_tests(base64.b64encode(zlib.compress(old.getvalue())).decode())
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["", "not base64!", "AAAA", packed(STDIO)[:40], packed(None)[:-4]])
def test_damaged_tests_are_refused(broken):
    with pytest.raises(DisaError, match="private tests of a LiveCodeBench row: cannot be unpacked"):
        judges.unpack_tests(broken)


def test_the_digest_sees_content_and_not_order_or_spacing():
    rows = [("a b", "1"), ("c", "2")]
    assert rows_digest(rows) == rows_digest([("c", "2"), ("a\n b ", "1")])
    # e with an acute accent, composed and decomposed.
    assert rows_digest([("\u00e9", "1")]) == rows_digest([("e\u0301", "1")])
    for other in (
        [("a b", "2"), ("c", "1")],
        [("ab", "1"), ("c", "2")],
        [("a b", "1")],
        [*rows, rows[0]],
        [("a", "b1"), ("c", "2")],
    ):
        assert rows_digest(other) != rows_digest(rows)


def test_the_documentation_lists_every_entry_with_its_rows_and_what_vouches_for_them(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "tasks.md").read_text()
    table = {
        cells[0].strip("`"): cells[1:]
        for line in text.splitlines()
        if (cells := [c.strip() for c in line.strip("|").split("|")]) and cells[0].strip("`") in BENCHMARKS
    }
    assert list(table) == list(BENCHMARKS)
    for name, (_, rows, _, digest) in table.items():
        known = ["file"] if None not in BENCHMARKS[name].files.values() else []
        published = BENCHMARKS[name].contents[0]
        known += ["rows"] if published.digest else []
        assert (rows, digest) == (str(published.rows), ", ".join(known) or "not verified"), name
