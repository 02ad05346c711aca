"""Gold answers of real benchmarks, where the files are at hand: each accepts itself."""

import json
import os
from pathlib import Path

import pytest

from disa.errors import DisaError
from disa.rewards.maths import Gold, Verdict, extract_answer, verdict_on

FOLDER = Path(os.environ.get("DISA_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "maths"
ROWS = {
    "aime2024": 30,
    "amc2023": 40,
    "math500": 500,
    "olympiadbench": 675,
    "gsm8k_test": 1319,
    "gsm8k_train": 7473,
    "math_train": 7474,
}
# Rows of math_train whose answer field is null or empty.
WITHOUT_ANSWER = {"math_train/886", "math_train/1009", "math_train/5328", "math_train/5330"}


@pytest.mark.parametrize("name", ROWS)
def test_every_gold_answer_accepts_itself(name):
    path = FOLDER / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there; set DISA_DATA to the folder that holds maths/{name}.jsonl")
    refused, without, rows = [], set(), 0
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            rows += 1
            try:
                gold = Gold.from_row(row)
            except DisaError:
                without.add(row["id"])
                continue
            answer = extract_answer(f"\\boxed{{{gold.answer}}}")
            if answer is None or verdict_on(gold, answer) is not Verdict.CORRECT:
                refused.append(row["id"])
    assert rows == ROWS[name]
    assert refused == []
    assert without == {identifier for identifier in WITHOUT_ANSWER if identifier.startswith(name)}
