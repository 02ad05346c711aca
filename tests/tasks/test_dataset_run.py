"""A data set with a custom reward goes through the whole pipeline, undecided completions and all."""

import json
import math

import pytest

from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import EvaluationRecord, PartitionEstimate, Prompt, ScoredTrajectory

REWARD = """
async def reward(prompts, completions, letter, **columns):
    # A completion that begins with b stays undecided.
    return [None if c.startswith("b") else float(c == l) for c, l in zip(completions, letter)]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The finished run of a recipe whose model says a letter; one in three draws is undecided."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "mine.py").write_text(REWARD)
    rows = [{"prompt": f"{i % 10}{i // 10}:", "letter": "abc"[i % 3], "solution": "abc"[i % 3]} for i in range(36)]
    held = rows[:6]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    reward = f"{folder / 'mine.py'}:reward"
    source = {"path": str(folder / "rows.jsonl"), "verifier": reward}
    values = {
        "run_dir": str(folder / "run"),
        "tasks": {
            "name": "dataset",
            "sources": [
                source | {"path": str(folder / "held.jsonl"), "use": "heldout"},
                source | {"use": "hash"},
            ],
            "heldout_share": 0.0,
            "warmup_share": 0.5,
        },
        "warmup": {
            "small_model": {"hidden_size": 16, "layers": 1, "heads": 2, "context_length": 64},
            "reference": {"steps": 60, "noise": 0.9},
            "proposal": None,
            "batch_size": 32,
            "learning_rate": 0.02,
        },
        "sampling": {"max_completion_length": 3},
        "proposals": {"per_prompt": 16, "per_heldout_prompt": 16},
        "training": {
            "inverse_temperature": 2,
            "steps": 2,
            "prompts_per_step": 3,
            "completions_per_prompt": 4,
            "offline_share": 0.5,
        },
        "evaluation": {"samples_per_prompt": 8, "ks": [1, 2], "train_prompts": 2},
    }
    (folder / "recipe.yaml").write_text(json.dumps(values))
    Pipeline(load_recipe(folder / "recipe.yaml"), say=lambda line: None).run()
    return folder / "run"


def manifest(run, stage):
    return json.loads((run / stage / "manifest.json").read_text())


def test_what_is_held_out_was_dropped_from_training_and_is_reported(run):
    data = manifest(run, "1_tasks")["data"]
    assert data["overlap"]["dropped"] == 6
    assert [source["rows"] for source in data["sources"]] == [6, 36]
    left_out = json.loads((run / "1_tasks" / "left_out.json").read_text())
    assert len(left_out["overlap"]) == 6 and left_out["incomplete"] == []
    rows = read_rows(run / "1_tasks", Prompt)
    held = {row.prompt for row in rows if row.split == "heldout"}
    assert len(held) == 6 and not held & {row.prompt for row in rows if row.split != "heldout"}


def test_undecided_rows_are_kept_as_null_counted_and_left_out_of_estimates(run):
    rows = read_rows(run / "3_scoring", ScoredTrajectory)
    undecided = [row for row in rows if row.completion.startswith("b")]
    assert undecided and {row.reward for row in undecided} == {None}
    assert {row.reward for row in rows if row not in undecided} == {0.0, 1.0}
    assert manifest(run, "3_scoring")["undecided"] == len(undecided)
    decided = [row for row in rows if row.reward is not None]
    assert manifest(run, "4_partition")["trajectories"] == len(decided)
    for estimate in read_rows(run / "4_partition" / "estimates.parquet", PartitionEstimate):
        mine = [row for row in decided if row.prompt_id == estimate.prompt_id]
        assert estimate.n == len(mine)
        drawn = [row.reward for row in mine if row.source == "reference"]
        assert estimate.mean_reward_reference == pytest.approx(sum(drawn) / len(drawn) if drawn else 0.0)


def test_training_and_evaluation_leave_undecided_completions_out(run):
    records = read_rows(run / "7_evaluation" / "disa", EvaluationRecord)
    undecided = [r for r in records if r.reward is None]
    assert undecided and all(r.completion.startswith("b") for r in undecided)
    summary = json.loads((run / "8_report" / "summary.json").read_text())
    held = [r for r in records if r.split == "heldout"]
    by_prompt = {}
    for r in held:
        if r.reward is not None:
            by_prompt.setdefault(r.prompt_id, []).append(r.reward)
    means = [sum(v) / len(v) for v in by_prompt.values()]
    assert summary["disa"]["heldout"]["mean@1"]["value"] == pytest.approx(sum(means) / len(means))
    steps = [json.loads(line) for line in (run / "6_training" / "disa" / "steps.jsonl").read_text().splitlines()]
    assert steps and all(math.isfinite(step["loss"]) for step in steps if "loss" in step)
