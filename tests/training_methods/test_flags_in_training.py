"""Flagged prompts in the two halves of DISA's objective, and in what the log says about log Z."""

import pytest
import torch
from method_oracle import BETA, IDS, SIZE, World

from disa.errors import DisaError
from disa.training.build import build_trainer
from disa.training.stored import StoredTrajectories
from disa.training.trajectory_weights import equal_prompts, target_weights

FLAGS = {"2": ["wide_interval"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("oracle") / "reference")


@pytest.fixture(scope="module")
def rows(world):
    return world.trajectories(40)


def both(world, tmp_path, rows, *, flags=FLAGS, method="disa_both", error=0.0, **changes):
    # Three prompts per step: as many as are left where one is skipped.
    anchor, changes = world.anchor(error=error, flags=flags), {"prompts_per_step": SIZE - 1} | changes
    return build_trainer(method, world.ingredients(tmp_path, anchor=anchor, trajectories=rows, **changes))


def projected(world, rows):
    """The forward projection's trajectories, weighted as the whole of ``rows``."""
    weights = target_weights(rows, world.anchor(), cap=8.0) * equal_prompts(rows)
    return StoredTrajectories(rows, world.prompt_ids(), weights, seed=0)


def same_batches(a, b):
    batches = ([vars(stored.batch(n, 12, "cpu", 0)) for n in range(5)] for stored in (a, b))
    return all(
        torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0))  # log_z is NaN where none was given
        for one, other in zip(*batches, strict=True)
        for x, y in zip(one.values(), other.values(), strict=True)
    )


@pytest.mark.parametrize("policy", ["group", "skip"])
@pytest.mark.parametrize(("method", "share"), [("disa_both", 0.0), ("disa", 0.25)])
def test_a_flagged_prompt_gives_the_forward_projection_no_trajectory(world, tmp_path, rows, policy, method, share):
    trainer = both(world, tmp_path, rows, method=method, flagged=policy, offline_share=share)
    kept = [row for row in rows if row.prompt_id != "2"]
    assert trainer._offline.prompts == {"0", "1", "3"}
    assert same_batches(trainer._offline, projected(world, kept))
    assert not same_batches(trainer._offline, projected(world, rows))


def test_a_skipped_prompt_is_trained_on_by_neither_half(world, tmp_path, rows):
    trainer = both(world, tmp_path, rows, flagged="skip", steps=3)
    before = trainer.model.model.table.weight.detach().clone()
    trainer.train()
    moved = (trainer.model.model.table.weight != before).any(dim=1).reshape(SIZE, -1).any(dim=1)
    assert moved.tolist() == [True, True, False, True]


@pytest.mark.parametrize(("flags", "policy"), [(FLAGS, "train"), ({}, "group"), ({}, "skip"), ({}, "refuse")])
def test_without_flags_or_with_the_default_the_projection_has_all_trajectories(world, tmp_path, rows, flags, policy):
    trainer = both(world, tmp_path, rows, flags=flags, flagged=policy)
    assert same_batches(trainer._offline, projected(world, rows))


def test_a_projection_without_a_prompt_to_learn_from_is_refused(world, tmp_path, rows):
    flags = dict.fromkeys(IDS, ["few_hits"])
    with pytest.raises(DisaError, match="all 4 prompts are flagged, which leaves none of 160 stored trajectories"):
        both(world, tmp_path, rows, flags=flags, flagged="group")
    with pytest.raises(DisaError, match="which leaves 0 to train on, expected at least the 3 of a step"):
        both(world, tmp_path, rows, flags=flags, flagged="skip")


def test_a_trainer_refuses_trajectories_whose_log_z_its_flags_distrust(world, tmp_path, rows):
    trainer = both(world, tmp_path, rows, flagged="group")
    parts = {"anchor": world.anchor(flags=FLAGS), "offline": projected(world, rows), **world.online()}
    with pytest.raises(DisaError, match="of 1 flagged prompts, 2 first, .* flagged='group' does not use"):
        type(trainer)(args=trainer.args, **parts)


def test_the_audit_reads_the_prompts_with_a_frozen_log_z_alone(world, tmp_path):
    flags = {"1": ["few_hits"], "2": ["few_hits"]}
    trainer = both(world, tmp_path, (), flags=flags, method="disa", error=0.7, flagged="group", prompts_per_step=SIZE)
    compute, seen = trainer.compute_loss, []

    def recorded(model, inputs, **others):
        seen.append(inputs)
        return compute(model, inputs, **others)

    trainer.compute_loss = recorded
    trainer.train()
    (inputs,), line = seen, trainer.state.log_history[0]
    # The policy is the reference in the first step: a residual is log Z - beta r.
    residual, audited = inputs["log_z"] - BETA * inputs["raw_reward"].double(), inputs["audited"]
    assert audited.sum() == 2 * 8
    assert residual[~audited].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert line["residual/mean"] == pytest.approx(residual[audited].mean().item(), abs=1e-5)
    assert line["eps_audit"] == pytest.approx(-torch.exp(-residual[audited]).mean().log().item(), abs=1e-5)
    assert abs(line["eps_audit"] + torch.exp(-residual).mean().log().item()) > 0.05
