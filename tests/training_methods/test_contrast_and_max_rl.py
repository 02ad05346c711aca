"""Contrastive balance against sums over pairs, MaxRL against its formula, and GFlowRL's clip in both readings."""

import itertools

import pytest
import torch
from method_oracle import World
from test_balance_trainers import gflow, trained_by, values, vargrad

from disa.errors import DisaError
from disa.objectives.trajectory_balance import anchored_baseline, trajectory_balance_loss
from disa.training.build import build_trainer
from disa.training.config import TrainingConfig
from disa.training.log_z import Contrast, gflowrl_log_z
from disa.training.max_rl import max_rl_advantage


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("oracle") / "reference")


@pytest.mark.parametrize("k", [2, 3, 5])
def test_half_the_gradient_of_all_pairs_is_that_of_the_plain_leave_one_out_baseline(k):
    delta = torch.randn(k, dtype=torch.float64, generator=torch.Generator().manual_seed(k)).requires_grad_()
    b = anchored_baseline(delta, torch.zeros(k, dtype=torch.long), prior_strength=0.0)
    found = torch.autograd.grad(trajectory_balance_loss(delta, b), delta)[0]
    pairs = [(delta[i] - delta[j]).square() for i, j in itertools.combinations(range(k), 2)]
    expected = torch.autograd.grad(torch.stack(pairs).mean() / 2, delta)[0]
    # Sums of at most ten terms of order one, in float64.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_contrastive_balance_reaches_the_target_without_a_log_z_and_audits_none(world, tmp_path):
    contrast = Contrast(values(world))
    trainer = trained_by(world, tmp_path, contrast, steps=150, baseline_prior_strength=0.0)
    trainer.train()
    assert world.kl_to_target(trainer.model).mean() < 0.005
    assert not any("eps_audit" in line for line in trainer.state.log_history)
    for changes in ({"baseline": "none"}, {"baseline_prior_strength": 1.0}, {"group": 1}):
        with pytest.raises(DisaError, match="log Z cancels within groups"):
            trained_by(world, tmp_path, contrast, **{"baseline_prior_strength": 0.0} | changes)


def test_the_first_step_of_contrastive_balance_is_vargrad_s_times_k_over_k_minus_1(world, tmp_path):
    losses = []
    for build in (vargrad, lambda *a, **c: trained_by(*a, Contrast(values(world)), baseline_prior_strength=0.0, **c)):
        trainer = build(world, tmp_path, steps=1, logging_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    # Residuals of leave-one-out means are K / (K - 1) times those of the mean; the loss squares them.
    assert losses[1] == pytest.approx(losses[0] * (8 / 7) ** 2, rel=1e-5)


def test_max_rl_divides_by_the_group_s_mean_and_a_group_without_reward_teaches_nothing():
    reward = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 0.5, torch.nan, 1.5, 1.0])
    expected = [3.0, -1, -1, -1, 0, 0, 0, 0, -0.5, 0, 0.5, 0]
    assert max_rl_advantage(reward, 4).tolist() == expected


def test_max_rl_s_advantages_reach_the_loss(world, tmp_path):
    trainer = build_trainer("max_rl", world.ingredients(tmp_path))
    seen, rewards, compute = [], [], trainer.compute_loss

    def recorded(model, inputs, **others):
        seen.append(inputs["advantages"])
        rewards.append(trainer.raw_rewards())
        return compute(model, inputs, **others)

    trainer.compute_loss = recorded
    trainer.train()
    wanted = max_rl_advantage(rewards[0], 8)
    # TRL shuffles a batch's rows.
    assert sorted(seen[0].tolist()) == pytest.approx(sorted(wanted.tolist()))
    assert wanted.abs().max() > 1


def test_a_function_of_weight_0_leaves_no_advantage_of_max_rl_undecided(world, tmp_path):
    trainer = build_trainer("max_rl", world.ingredients(tmp_path))
    trainer._rewards_per_func = torch.tensor([[1.0, torch.nan], [0.5, 3.0], [torch.nan, 1.0]])
    trainer.reward_weights = torch.tensor([1.0, 0.0])
    assert trainer.raw_rewards()[:2].tolist() == [1.0, 0.5] and trainer.raw_rewards()[2].isnan()


def test_the_clip_of_the_ratio_acts_on_reused_completions_and_that_of_the_gap_on_fresh_ones(world, tmp_path):
    def losses(log_z):
        # A group's mean is its log Z, as in gflow.
        trainer = trained_by(world, tmp_path, log_z, steps=3, num_iterations=3, logging_steps=1, weight_cap=1e6)
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    plain, gap, ratio = (
        losses(gflowrl_log_z(**c)) for c in ({}, {"clip_low": 0.2, "clip_high": 0.28}, {"ratio_range": (0.8, 1.28)})
    )
    assert gap[0] < plain[0] == ratio[0]
    assert ratio[1:] != plain[1:]
    assert TrainingConfig().gflowrl_clip == "none" and gflow(world, tmp_path).log_z.ratio_range is None


@pytest.mark.parametrize("method", ["gflowrl", "gflowrl_published"])
def test_a_recipe_chooses_the_reading_of_the_clip(world, tmp_path, method):
    gap, ratio = (build_trainer(method, world.ingredients(tmp_path, gflowrl_clip=c)).log_z for c in ("gap", "ratio"))
    assert (gap.clip, gap.ratio_range) == ({"low": 0.2, "high": 0.28}, None)
    assert (ratio.clip, ratio.ratio_range) == (None, (0.8, 1.28))
