"""Every script of examples/ runs from start to end on the small model, as a user starts it."""

import json
import os
import string
import subprocess
import sys
from pathlib import Path

import pytest

from disa.anchor import Anchor
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt
from disa.warmup.config import SmallModelConfig
from disa.warmup.small_model import character_tokenizer, small_model

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
        ("offline_only.py", ("REFERENCE", "DATA", "OUTPUT"), "policy/model.safetensors"),
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


def test_tools_are_two_lines_more(tmp_path):
    from trl.chat_template_utils import qwen3_chat_template

    tokenizer = character_tokenizer(string.printable)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = qwen3_chat_template
    size = SmallModelConfig(hidden_size=16, layers=1, heads=2, context_length=4096)
    small_model(size, tokenizer, 0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"question": f"What is {a} + {a}?", "answer": str(2 * a)} for a in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("tools.py", tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "out", folder=tmp_path)
    assert (tmp_path / "out" / "policy" / "model.safetensors").is_file()
    anchor = Anchor.load(tmp_path / "out" / "anchor")
    assert anchor.fingerprint.tools.startswith("add+multiply:")
    assert [tool["function"]["name"] for tool in anchor.chat_template_kwargs["tools"]] == ["add", "multiply"]


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    notebook = json.loads((EXAMPLES / "calibrate_and_train.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    tokenizer = character_tokenizer("0123456789+= ")
    size = SmallModelConfig(hidden_size=16, layers=1, heads=2, context_length=32)
    small_model(size, tokenizer, 0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    script = "\n\n".join(cells).replace("Qwen/Qwen2.5-0.5B", str(tmp_path / "model"))
    (tmp_path / "notebook.py").write_text(script.replace("max_steps=20", "max_steps=2").replace("steps=10", "steps=2"))
    printed = run(tmp_path / "notebook.py", folder=tmp_path)
    assert "eval_kl_to_target" in printed and "residual" in printed
