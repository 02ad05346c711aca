"""benchmarks/hours.py: counts of completions times what one takes."""

import importlib
from pathlib import Path

import pytest

from disa.recipe import load_recipe

SIZES = [
    "proposals.per_prompt=16",
    "proposals.per_heldout_prompt=16",
    "training.steps=48",
    "evaluation.train_prompts=16",
    "comparison.methods=[lora_sft, grpo, gspo, disa, disa_both]",
    "comparison.search.steps=16",
    "comparison.search.points=[{learning_rate: 2.0e-4}, {learning_rate: 5.0e-5, steps_per_completion: 4}]",
]
COUNTS = {"train": 100, "validation": 10, "heldout": 30}


@pytest.fixture
def hours(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("hours")


def seconds(hours, pace):
    recipe = load_recipe("recipes/mbpp-qwen.yaml", SIZES)
    return dict(hours.stages(recipe, COUNTS, hours.Pace(*pace, 50.0), 3.0, "bridge"))


def test_drawing_for_log_z_counts_every_stream_of_a_bridge(hours):
    found = seconds(hours, (1.0, 0.0, 0.0))
    # 140 prompts with 16 completions, a quarter by one pass, the rest by reference and a model three times as large.
    assert found["proposals"] == 140 * 16 * (0.25 + 0.75 * 4)
    assert found["scoring"] == 0
    # Five sources on 16 prompts with 8 completions: reference 1, proposal 3, bridge 4, hint 2, temperature 1.
    assert found["pilot"] == 16 * 8 * (1 + 3 + 4 + 2 + 1)


def test_methods_draw_as_many_as_their_equal_budgets_say_in_search_and_seeds(hours):
    found = seconds(hours, (1.0, 0.0, 0.0))
    judged = (30 + 16) * 8
    # 48 batches of 64, and for GRPO, which reads none of 1,600 trajectories, in whole micro-batches of 16 more.
    grpo = 16 * round((8 + 1600 / (48 * 8)) / 2) * 1
    assert found["grpo: 3 seeds"] == 3 * (48 * grpo + judged)
    assert found["disa: 3 seeds"] == 3 * (48 * 64 + judged)
    assert found["lora_sft: 3 seeds"] == 3 * judged
    assert found["disa: search"] == 2 * (16 * 64 + 10 * 8)


def test_a_batch_that_is_used_four_times_is_trained_on_four_times(hours):
    found = seconds(hours, (0.0, 0.0, 1.0))
    assert found["disa: 3 seeds"] == 3 * 48 * 64 * 4
    assert found["disa: search"] == 16 * 64 * (1 + 4)
    assert found["lora_sft: search"] == 2 * 16 * 64
    assert found["disa_both: search"] == 16 * 2 * 64 * (1 + 4)  # as many stored ones beside those drawn


def test_the_reference_scores_what_every_method_but_grpo_and_gspo_draws(hours):
    found = seconds(hours, (0.0, 1.0, 0.0))
    judged = 2 * (30 + 16) * 8
    assert found["grpo: 3 seeds"] == found["gspo: 3 seeds"] == 3 * judged
    assert found["disa: 3 seeds"] == 3 * (48 * 64 + judged)
