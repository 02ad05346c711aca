"""Several optimiser steps per batch of completions, for every source of log Z and for the policy gradients."""

import dataclasses

import pytest
import torch
from method_oracle import World
from test_balance_trainers import a2po, flowrl, frozen, gflow, vargrad

from disa.training.build import build_trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("oracle") / "reference")


def curve(trainer):
    times = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
    return [{k: v for k, v in line.items() if k not in times} for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("build", [frozen, vargrad, gflow, flowrl, a2po])
def test_four_steps_per_completion_come_nearer_to_the_target_than_one_with_as_many_completions(world, tmp_path, build):
    found, drawn = [], []
    for uses in (1, 4):
        trainer = build(world, tmp_path / str(uses), steps=20 * uses, num_iterations=uses, logging_steps=1)
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        drawn.append(sum("reward" in line for line in lines))
        found.append(world.kl_to_target(trainer.model).mean())
    assert drawn == [20, 20]
    # Measured: 0.60 with a frozen log Z, 0.49 with the group's, 0.79 with a head, which learns log Z first.
    assert found[1] < 0.85 * found[0]


@pytest.mark.parametrize("method", ["grpo", "gspo", "vargrad"])
def test_a_run_resumed_within_a_batch_is_the_unbroken_one(world, tmp_path, method):
    def trainer(folder, **changes):
        parts = world.ingredients(folder, steps=5)
        return build_trainer(
            method,
            dataclasses.replace(
                parts,
                arguments=parts.arguments | changes,
                generation=parts.generation | {"num_iterations": 3},
            ),
        )

    unbroken = trainer(tmp_path / "run", save_strategy="steps", save_steps=1)
    unbroken.train()
    for step in (1, 2, 4):  # the first batch is used in steps 1 to 3
        resumed = trainer(tmp_path / "again")
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert curve(resumed) == curve(unbroken), step
        for a, b in zip(unbroken.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b), step
    assert sum("reward" in line for line in curve(unbroken)) == 2
