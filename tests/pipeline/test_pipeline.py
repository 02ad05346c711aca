"""The tiny recipe end to end: what it leaves behind, and that a second run does nothing."""

import json

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.loading import load_model, load_tokenizer
from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import EvaluationRecord, PartitionEstimate, Prompt, ScoredTrajectory, Trajectory

FOLDERS = [
    "1_tasks",
    "warmup",
    "2_proposals",
    "3_scoring",
    "4_partition",
    "5_anchor",
    "6_training/disa",
    "6_training/grpo",
    "7_evaluation/reference",
    "7_evaluation/disa",
    "7_evaluation/grpo",
    "8_report",
]


def run(recipe, until="report", **arguments):
    """Lines that the stages said."""
    lines = []
    Pipeline(load_recipe(recipe), say=lines.append, **arguments).run(until)
    return lines


def state(run_dir):
    files = [p for p in run_dir.rglob("*") if p.is_file() and not p.name.startswith(".lock")]
    return {str(p.relative_to(run_dir)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_every_stage_finishes_in_its_own_folder(finished_run):
    manifests = [json.loads((finished_run / name / "manifest.json").read_text()) for name in FOLDERS]
    assert [manifest["stage"] for manifest in manifests] == FOLDERS
    assert {p.name for p in finished_run.iterdir() if p.is_dir()} == {name.split("/")[0] for name in FOLDERS}
    # Inputs are named by their contents, so the chain from report to tasks can be followed on disk alone.
    contents = {manifest["content"] for manifest in manifests}
    assert all(set(manifest["inputs"].values()) <= contents for manifest in manifests)


def test_rows_follow_from_stage_to_stage_without_loss(finished_run, tiny_recipe):
    prompts = read_rows(finished_run / "1_tasks", Prompt)
    drawn = read_rows(finished_run / "2_proposals", Trajectory)
    scored = read_rows(finished_run / "3_scoring", ScoredTrajectory)
    estimates = read_rows(finished_run / "4_partition", PartitionEstimate)
    sizes = {split: sum(p.split == split for p in prompts) for split in ("train", "validation", "heldout", "warmup")}
    assert sizes == {"train": 6, "validation": 0, "heldout": 3, "warmup": 24}
    assert len(drawn) == 6 * 16 + 3 * 8
    keys = [(t.prompt_id, t.source, t.draw) for t in drawn]
    assert len(set(keys)) == len(keys)
    assert [(t.prompt_id, t.source, t.draw) for t in scored] == keys
    assert [t.completion_ids for t in scored] == [t.completion_ids for t in drawn]
    assert {e.prompt_id for e in estimates} == {p.prompt_id for p in prompts if p.split in ("train", "heldout")}
    anchor = Anchor.load(finished_run / "5_anchor")
    assert list(anchor.estimates.values()) == estimates
    assert anchor.fingerprint.inverse_temperature == tiny_recipe["training"]["inverse_temperature"]
    for name in ("reference", "disa", "grpo"):
        records = read_rows(finished_run / "7_evaluation" / name, EvaluationRecord)
        assert len(records) == (3 + 2) * 4
        assert {r.model for r in records} == {name}


def test_rewards_of_the_tiny_run_are_neither_all_0_nor_all_1(finished_run):
    rewards = [t.reward for t in read_rows(finished_run / "3_scoring", ScoredTrajectory)]
    assert set(rewards) == {0.0, 1.0}


def test_what_training_leaves_is_a_plain_model_folder(finished_run):
    for method in ("disa", "grpo"):
        folder = finished_run / "6_training" / method / "model"
        trained, reference = load_model(folder), load_model(finished_run / "warmup" / "reference")
        assert trained.num_parameters() == reference.num_parameters()
        assert any((a != b).any() for a, b in zip(trained.parameters(), reference.parameters(), strict=True))
        assert load_tokenizer(folder).get_vocab() == load_tokenizer(finished_run / "warmup" / "reference").get_vocab()


def test_every_table_loads_with_datasets_alone(finished_run, tmp_path):
    for path in sorted(finished_run.rglob("*.parquet")):
        if pq.read_metadata(path).num_rows:
            rows = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path))["train"]
            assert rows.num_rows == pq.read_metadata(path).num_rows


def test_a_second_run_skips_everything_and_touches_nothing(run_copy):
    recipe, run_dir = run_copy
    before = state(run_dir)
    assert run(recipe) == [f"{name}: finished earlier, nothing changed" for name in FOLDERS]
    assert state(run_dir) == before


def test_a_deleted_stage_is_made_again_with_the_same_rows_and_nothing_downstream_is(run_copy):
    recipe, run_dir = run_copy
    before = state(run_dir)
    for file in (run_dir / "4_partition").iterdir():
        file.unlink()
    assert [line.split(":")[0] for line in run(recipe) if "done in" in line] == ["4_partition"]
    after = state(run_dir)
    changed = {name for name in before if after[name] != before[name]}
    assert {name.split("/")[0] for name in changed} == {"4_partition"}
    assert after["4_partition/estimates.parquet"][1] == before["4_partition/estimates.parquet"][1]


def test_until_stops_behind_its_stage(tiny_recipe, write_recipe, tmp_path):
    lines = run(write_recipe(tiny_recipe | {"run_dir": str(tmp_path / "new")}), until="tasks")
    assert [line.split(":")[0] for line in lines] == ["1_tasks", "  3 heldout, 6 train, 24 warmup prompts"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir() if p.is_dir()) == ["1_tasks"]


def test_a_stage_that_may_not_work_is_refused_by_name(tiny_recipe, write_recipe, tmp_path):
    recipe = write_recipe(tiny_recipe | {"run_dir": str(tmp_path / "new")})
    with pytest.raises(DisaError, match="stage tasks has no finished output.*Fix: run 'disa tasks RECIPE'"):
        run(recipe, until="warmup", may_work=("warmup",))


def test_adapters_and_an_offline_share_train_through_the_pipeline(run_copy, tiny_recipe, write_recipe):
    _, run_dir = run_copy
    training = tiny_recipe["training"] | {"lora": {"rank": 2, "alpha": 4}, "offline_share": 0.3, "methods": ["disa"]}
    recipe = write_recipe(tiny_recipe | {"run_dir": str(run_dir), "training": training})
    before = load_model(run_dir / "6_training" / "disa" / "model")
    assert [line.split(":")[0] for line in run(recipe, until="training") if "done in" in line] == ["6_training/disa"]
    merged, reference = load_model(run_dir / "6_training/disa/model"), load_model(run_dir / "warmup/reference")
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in before.named_parameters()]
    assert any((a != b).any() for a, b in zip(merged.parameters(), reference.parameters(), strict=True))
    # A rank of 2 shows in the merged weights: the change of a matrix has no third singular value.
    name = "model.layers.0.mlp.down_proj.weight"
    change = (merged.get_parameter(name) - reference.get_parameter(name)).double()
    values = change.svd().S
    # Weights near 0.1 are rounded to 1e-8 when the float32 product is added to them.
    assert values[0] > 1e-5 > 1e-6 > values[2]
