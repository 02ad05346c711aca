"""Every script of examples/ runs from start to end on the small model, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from disa.anchor import Anchor
from disa.runs.records import Prompt, read_rows

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def given(finished_run, tmp_path):
    """Reference, proposal and a data file in the small model's alphabet."""
    prompts = [p for path in (finished_run / "1_tasks").glob("*.parquet") for p in read_rows(path, Prompt)][:8]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": p.prompt, "answer": "12341"}) + "\n" for p in prompts))
    return {"REFERENCE": finished_run / "warmup" / "reference", "PROPOSAL": finished_run / "warmup" / "proposal"} | {
        "DATA": data,
        "OUTPUT": tmp_path / "out",
    }


def run(script, *arguments, folder):
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "made"),
    [
        ("calibrate_and_train.py", ("REFERENCE", "PROPOSAL", "DATA", "OUTPUT"), "policy/adapter_model.safetensors"),
        ("grpo_to_disa.py", ("disa", "REFERENCE", "DATA", "OUTPUT"), "model.safetensors"),
        ("grpo_to_disa.py", ("grpo", "REFERENCE", "DATA", "OUTPUT"), "model.safetensors"),
        ("own_reward.py", ("REFERENCE", "DATA", "OUTPUT"), "5_anchor/anchor.parquet"),
    ],
)
def test_it_runs_and_leaves_its_result(script, arguments, made, given, tmp_path):
    run(script, *(given.get(a, a) for a in arguments), folder=tmp_path)
    assert (tmp_path / "out" / made).is_file()


def test_an_own_rewards_range_bounds_log_z(given, tmp_path):
    output = run("own_reward.py", given["REFERENCE"], given["DATA"], given["OUTPUT"], folder=tmp_path)
    rows = Anchor.load(given["OUTPUT"]).estimates.values()
    assert output.count("log Z") == len(rows) == 8
    assert all(-2 <= row.log_z <= 2 for row in rows)
