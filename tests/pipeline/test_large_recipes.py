"""Tiny twins of the recipes for large models: every setting in place but sizes, and transformers in vLLM's place."""

import importlib
from pathlib import Path

import pytest

from disa.pipeline import Pipeline
from disa.planning.cluster import GPUS, Cluster
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from tiny_qwen import twin


@pytest.mark.parametrize(
    "training", [{"lora": {"rank": 2, "alpha": 4}}, {"lora": None, "optim": "adafactor"}], ids=["adapters", "full"]
)
def test_a_twin_of_the_recipe_for_one_node_runs_from_start_to_report(training, tmp_path, monkeypatch):
    recipe = twin("qwen-7b-node", tmp_path, monkeypatch, micro_batch=4, **training)
    as_it_stands = load_recipe("recipes/qwen-7b-node.yaml").training
    for name in ("compute", "length_scale", "residual_clip", "inverse_temperature", "methods"):
        assert getattr(recipe.training, name) == getattr(as_it_stands, name)
    Pipeline(recipe, say=lambda line: None).run()
    assert (tmp_path / "run" / "6_training" / "disa" / "model" / "config.json").is_file()
    assert "pass@2" in (tmp_path / "run" / "8_report" / "report.html").read_text()


def test_a_twin_of_the_recipe_for_several_nodes_runs_up_to_the_anchor(tmp_path, monkeypatch):
    recipe = twin("verl/qwen-32b-nodes", tmp_path, monkeypatch)
    assert recipe.models.device_map == "auto" and recipe.verl["trainer"]["nnodes"] == 8
    Pipeline(recipe, say=lambda line: None).run("anchor")
    assert read_json(tmp_path / "run" / "5_anchor" / "manifest.json")["anchor"]["prompts"] > 0


@pytest.mark.parametrize("name, gpus, drawing", [("7B", 8, 1), ("32B", 64, 2)])
def test_the_plan_says_yes_to_the_recipes_as_they_stand(name, gpus, drawing, monkeypatch):
    monkeypatch.syspath_prepend(Path("benchmarks").resolve())
    large_models = importlib.import_module("large_models")
    file, sizes = large_models.MODELS[name]
    recipe, shape = load_recipe(large_models.RECIPES / file), large_models.shape_of(sizes)
    work, cluster = large_models.counted(recipe, shape), Cluster("h100", gpus)
    assert recipe.proposals.vllm["tensor_parallel_size"] == drawing
    # A group of GPUs draws and scores; all share the training, of which LoRA's weights are whole in each.
    held = [cluster.per_gpu(work[stage], drawing) for stage in ("2_proposals", "3_scoring")]
    held.append(cluster.per_gpu(work["6_training/disa"], 1 if recipe.training.lora else gpus))
    # What vLLM takes of the memory beside training: its share, or the whole of it where it has the GPU for itself.
    options = recipe.training.vllm.options if recipe.training.vllm else recipe.verl["actor_rollout_ref"]["rollout"]
    held[-1] += options["gpu_memory_utilization"] * GPUS["h100"].memory
    assert all(bytes <= GPUS["h100"].memory for bytes in held)
    assert "no" not in {cluster.fits(stage) for stage in work.values()}
