"""Policy gradient with DISA's advantages is DISA, under the four conditions and under no other."""

import numpy as np
import pytest
import torch
from small_world import BETA, GRADED, LOG_REF, LOG_Z, SPACE, THETA, gradient, log_policy, same, tensor

import disa
from disa.objectives.trajectory_balance import (
    anchored_baseline,
    trajectory_balance_loss,
    trajectory_balance_residual,
)

EPS = 0.4  # the frozen log Z is off by so much: the identity needs no exact one
GROUP = torch.arange(24) // 4
DRAWN = torch.randint(SPACE.completions, (24,), generator=torch.Generator().manual_seed(0))
REF, REWARD, LOG_ZS = tensor(LOG_REF)[DRAWN], tensor(GRADED)[DRAWN], torch.full((24,), LOG_Z + EPS).double()
LENGTHS = tensor(SPACE.lengths)[DRAWN]


def log_pi(theta=THETA):
    return log_policy(theta)[DRAWN]


def from_policy(theta=THETA, **changes):
    parts = {"log_z": LOG_ZS, "log_pi": log_pi(theta), "log_ref": REF, "reward": REWARD, "beta": BETA}
    return disa.advantages(**parts | changes)


def of_disa(theta=THETA, group=None):
    """Gradient of the mean squared residual of the completions drawn."""

    def loss(theta):
        residual = trajectory_balance_residual(log_pi(theta), REF, REWARD, LOG_ZS, beta=BETA)
        return trajectory_balance_loss(
            residual, None if group is None else anchored_baseline(residual, group, prior_strength=1.0)
        )

    return gradient(loss, theta)


def of_policy_gradient(advantage, theta=THETA, per_token=False):
    weight = 1 / LENGTHS if per_token else 1.0
    return gradient(lambda theta: -(advantage * weight * log_pi(theta)).mean(), theta)


@pytest.mark.parametrize("group", [None, GROUP], ids=["plain", "baseline"])
def test_its_gradient_is_that_of_the_squared_residual(group):
    assert same(of_policy_gradient(from_policy(group=group)), of_disa(group=group))
    assert of_disa(group=group).abs().max() > 0.1


def test_the_baseline_trusts_log_z_as_one_completion_unless_told_otherwise():
    assert same(from_policy(group=GROUP), from_policy(group=GROUP, prior_strength=1.0))
    assert (from_policy(group=GROUP) - from_policy(group=GROUP, prior_strength=2.0)).abs().max() > 0.01


def broken_conditions():
    plain = from_policy()
    moved = THETA - 0.3 * of_disa()
    at_half = (log_policy(THETA * 2)[DRAWN] - log_pi()).detach()  # logits over a temperature of a half
    return {
        "a mean over tokens": (of_policy_gradient(plain, per_token=True), of_disa()),
        "normalised advantages": (of_policy_gradient((plain - plain.mean()) / plain.std()), of_disa()),
        "a second step": (of_policy_gradient(plain, moved), of_disa(moved)),
        "another temperature": (of_policy_gradient(from_policy(log_pi=log_pi() + at_half)), of_disa()),
    }


@pytest.mark.parametrize(
    "condition", ["a mean over tokens", "normalised advantages", "a second step", "another temperature"]
)
def test_each_of_the_four_conditions_is_needed(condition):
    found, wanted = broken_conditions()[condition]
    # A hundredth, where rounding is 1e-12; also after the best rescaling, which an adaptive optimiser would hide.
    rest = wanted - (found * wanted).sum() / found.square().sum() * found
    assert rest.norm() / wanted.norm() > 0.01


def test_numpy_in_gives_numpy_out_and_torch_in_gives_torch_out():
    arrays = {"log_z": LOG_ZS, "log_pi": log_pi(), "log_ref": REF, "reward": REWARD, "group": GROUP}
    found = disa.advantages(beta=BETA, **{name: value.numpy() for name, value in arrays.items()})
    assert isinstance(found, np.ndarray) and found.dtype == np.float64
    assert same(found, from_policy(group=GROUP))
    single = from_policy(log_pi=log_pi().float())
    assert single.dtype == torch.float32
    # One rounding of the log-probabilities and one of the result, numbers below ten.
    assert same(single, from_policy(), tolerance=1e-5)


def test_an_undecided_completion_has_no_advantage_and_is_no_member_of_its_group():
    reward = REWARD.clone()
    reward[0] = torch.nan
    found = from_policy(reward=reward, group=GROUP)
    without = {"log_z": LOG_ZS[1:], "log_pi": log_pi()[1:], "log_ref": REF[1:], "reward": REWARD[1:]}
    assert found[0] == 0
    assert same(found[1:], disa.advantages(**without, beta=BETA, group=GROUP[1:]))


def test_no_gradient_flows_through_an_advantage_and_a_trained_log_z_is_refused():
    theta = THETA.clone().requires_grad_()
    assert not from_policy(theta).requires_grad
    with pytest.raises(ValueError, match="log_z requires grad"):
        from_policy(log_z=LOG_ZS.clone().requires_grad_())
