"""Published reference solutions pass, and wrong ones do not; all rows: benchmarks/code_sandbox.py."""

import json
import os
from pathlib import Path

import pytest

from disa.rewards.code import from_humaneval, from_humaneval_plus, from_mbpp

DATA = Path(os.environ.get("DISA_DATA", Path(__file__).parents[3] / "shared" / "data")) / "code"
BENCHMARKS = {
    "humaneval.jsonl": from_humaneval,
    "humanevalplus_mini.jsonl": from_humaneval_plus,
    "mbpp_sanitized.jsonl": from_mbpp,
}
# Rows that once needed something of their own: helpers in the prompt, several functions, any root, answers of
# megabytes, a function named like a builtin, an import of the solution, a result that is no plain data.
PECULIAR = {
    *(f"HumanEval/{number}" for number in (15, 32, 38, 50, 100, 130)),
    *(f"mbpp/{number}" for number in (126, 596, 737, 787, 794)),
}


@pytest.mark.parametrize("file", BENCHMARKS)
def test_references_pass_and_a_function_that_returns_nothing_does_not(file, open_verifier):
    if not (DATA / file).is_file():
        pytest.skip(f"{file} is not in {DATA}; DISA_DATA names the folder above it")
    verifier = open_verifier(2)
    every = [json.loads(line) for line in (DATA / file).read_text(encoding="utf-8").splitlines()]
    # A sample, for time: one row in twenty.
    rows = [row for number, row in enumerate(every) if number % 20 == 0 or row["id"] in PECULIAR]
    right = [BENCHMARKS[file](row) for row in rows]
    nothing = ["".join(f"def {name}(*a, **k): pass\n" for name in program.tests.names) for program in right]
    wrong = [BENCHMARKS[file](row, code) for row, code in zip(rows, nothing, strict=True)]
    verdicts = verifier.check(right + wrong)
    assert [(row["id"], v.status, v.reason) for row, v in zip(rows, verdicts, strict=False) if not v.passed] == []
    assert {verdict.status for verdict in verdicts[len(rows) :]} == {"failed"}
