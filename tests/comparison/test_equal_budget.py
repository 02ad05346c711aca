"""Drawn and read completions add up to the same for every method that draws its own."""

import pytest

from disa.comparison.budget import equal_budgets, trajectories_read
from disa.comparison.config import point_training
from disa.runs.records import ScoredTrajectory
from disa.training.config import TrainingConfig
from disa.training.methods import METHODS

PROMPTS, PER_PROMPT = 40, 24
ROWS = [
    ScoredTrajectory(f"p{i}", draw, "reference" if draw < 8 else "proposal", "", [1], False, -1.0, -1.0, -1.0, 0.0)
    for i in range(PROMPTS)
    for draw in range(PER_PROMPT)
]


def budgets(equal="completions", **settings):
    training = TrainingConfig(methods=("disa",), **settings)
    configs = {method: point_training(training, method, {}) for method in METHODS}
    read = {method: trajectories_read(method, config, ROWS) for method, config in configs.items()}
    return equal_budgets(configs, read, equal=equal)


def test_what_a_method_reads_is_what_its_result_depends_on():
    read = {m: trajectories_read(m, TrainingConfig(value_samples=8), ROWS) for m in METHODS}
    everything, values = PROMPTS * PER_PROMPT, PROMPTS * 8
    supervised = {"sft", "sft_reward", "lora_sft"}
    assert {m for m, n in read.items() if n == everything} == supervised | {m for m in METHODS if METHODS[m].anchor}
    assert read["a2po"] == values
    assert all(n == 0 for m, n in read.items() if m != "a2po" and n != everything)


def test_totals_and_steps_are_equal_where_the_numbers_divide():
    # 960 trajectories over 15 steps are 64 completions per step, 8 groups of 8; A*-PO owes 320 fewer.
    found = budgets(steps=15, prompts_per_step=4, completions_per_prompt=8)
    assert {b.steps for b in found.values()} == {15}
    drawing = {m: b for m, b in found.items() if METHODS[m].generates}
    assert found["grpo"].drawn_per_step == 4 * 8 + 64
    assert {m: b.completions for m, b in drawing.items() if m != "a2po"} == dict.fromkeys(
        drawing.keys() - {"a2po"}, 15 * 32 + 960
    )
    for method in found.keys() - drawing.keys():
        assert (found[method].drawn, found[method].completions, found[method].stored_per_step) == (0, 960, 32)


def test_a_step_of_both_projections_learns_from_as_many_stored_trajectories_as_it_draws():
    found = budgets(steps=15, prompts_per_step=4, completions_per_prompt=8)
    learns = {method: (b.drawn_per_step, b.stored_per_step) for method, b in found.items()}
    assert learns["disa_both"] == (32, 32)
    assert learns["disa"] == (32, 0)
    # A*-PO reads stored trajectories for its values and learns from none.
    assert learns["a2po"] == (72, 0)
    assert {m for m, (drawn, _) in learns.items() if drawn == 0} == {m for m in METHODS if not METHODS[m].generates}


def test_totals_differ_by_less_than_a_group_a_step_where_they_do_not_divide():
    found = budgets(steps=7, prompts_per_step=3, completions_per_prompt=4)
    totals = [b.completions for m, b in found.items() if METHODS[m].generates]
    # Rounded to whole groups: half a group per step at most, to either side.
    assert max(totals) - min(totals) <= 7 * 4


def test_a_step_stays_divisible_into_micro_batches():
    for budget in budgets(steps=7, prompts_per_step=6, completions_per_prompt=4, micro_batch=12).values():
        assert budget.prompts_per_step % 3 == 0
        assert {budget.drawn_per_step, budget.stored_per_step} <= {0, 4 * budget.prompts_per_step}


def test_equal_steps_alone_leave_every_step_as_the_recipe_has_it():
    found = budgets(equal="steps", steps=7, prompts_per_step=3, completions_per_prompt=4)
    assert {(b.steps, b.prompts_per_step) for b in found.values()} == {(7, 3)}


@pytest.mark.parametrize("equal", ["completions", "steps"])
def test_methods_that_read_nothing_owe_nothing_to_each_other(equal):
    training = TrainingConfig(methods=("grpo",), steps=5, prompts_per_step=3)
    configs = {m: point_training(training, m, {}) for m in ("grpo", "vargrad")}
    found = equal_budgets(configs, dict.fromkeys(configs, 0), equal=equal)
    assert {b.drawn_per_step for b in found.values()} == {24}
