"""Frozen, group and learned log Z enter one residual; each method's published loss is that residual squared."""

import itertools
import math

import pytest
import torch
from trl_losses import a2po_trainer_loss

from disa.objectives.log_z import group_log_z, masked_mean, reference_log_z
from disa.objectives.trajectory_balance import (
    clip_gap,
    importance_weight,
    trajectory_balance_loss,
    trajectory_balance_residual,
)
from published_losses import a_star_po_loss

ROUNDING = 1e-12  # a handful of float64 operations on numbers of order one
BETA = 2.0
LOG_PI = torch.tensor([-3.0, -4.5, -2.0, -6.0, -1.0], dtype=torch.float64)
LOG_REF = torch.tensor([-3.5, -4.0, -2.5, -5.0, -2.0], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0], dtype=torch.float64)
LENGTHS = torch.tensor([2, 4, 1, 5, 3])
GROUP = torch.tensor([7, 7, 7, 3, 3])


def loss_of(log_pi, log_z, **settings):
    return trajectory_balance_loss(trajectory_balance_residual(log_pi, LOG_REF, REWARD, log_z, beta=BETA, **settings))


def test_group_log_z_is_the_hand_computed_group_mean():
    # beta r - (log pi - log ref): group 7 has 2 - 0.5, 0 + 0.5, 1 - 0.5; group 3 has 2 + 1, 0 - 1.
    found = group_log_z(LOG_PI, LOG_REF, REWARD, GROUP, beta=BETA)
    torch.testing.assert_close(found, torch.tensor([2.5 / 3] * 3 + [1.0] * 2, dtype=torch.float64))


def test_group_log_z_with_means_divides_each_log_ratio_by_its_own_tokens():
    found = group_log_z(LOG_PI, LOG_REF, REWARD, GROUP, beta=BETA, length="mean", lengths=LENGTHS)
    first = (2 - 0.5 / 2 + 0 + 0.5 / 4 + 1 - 0.5 / 1) / 3
    second = (2 + 1 / 5 + 0 - 1 / 3) / 2
    torch.testing.assert_close(found, torch.tensor([first] * 3 + [second] * 2, dtype=torch.float64))


def test_an_undecided_completion_is_no_member_of_its_group():
    reward = REWARD.clone()
    reward[1] = torch.nan
    found = group_log_z(LOG_PI, LOG_REF, reward, GROUP, beta=BETA)
    assert found[:3].tolist() == pytest.approx([1.0] * 3)
    reward[:3] = torch.nan
    assert group_log_z(LOG_PI, LOG_REF, reward, GROUP, beta=BETA)[:3].isnan().all()


def test_vargrad_gradient_is_that_of_the_groups_variance_of_the_log_ratio():
    log_pi = LOG_PI[:3].clone().requires_grad_()
    one = torch.zeros(3, dtype=torch.long)
    log_z = group_log_z(log_pi, LOG_REF[:3], REWARD[:3], one, beta=BETA)
    residual = trajectory_balance_residual(log_pi, LOG_REF[:3], REWARD[:3], log_z, beta=BETA)
    found = torch.autograd.grad(trajectory_balance_loss(residual), log_pi)[0]
    variance = torch.var(log_pi - LOG_REF[:3] - BETA * REWARD[:3], correction=0)
    # The stopped gradient of the mean is no loss: deviations from a mean sum to zero.
    torch.testing.assert_close(found, torch.autograd.grad(variance, log_pi)[0], rtol=0, atol=ROUNDING)
    assert found.abs().max() > 0.1


def test_a_group_of_one_has_no_gradient_with_group_log_z_and_has_one_with_a_frozen_log_z():
    log_pi = LOG_PI.clone().requires_grad_()
    alone = torch.arange(5)
    group = loss_of(log_pi, group_log_z(log_pi, LOG_REF, REWARD, alone, beta=BETA))
    frozen = loss_of(log_pi, torch.full_like(LOG_PI, 0.3))
    assert torch.autograd.grad(group, log_pi)[0].abs().max() < ROUNDING
    assert torch.autograd.grad(frozen, log_pi)[0].abs().min() > 0.01


def test_gflowrl_without_clip_and_with_sums_is_vargrad_on_fresh_completions():
    log_pi = LOG_PI.clone().requires_grad_()
    log_z = group_log_z(log_pi.detach(), LOG_REF, REWARD, GROUP, beta=BETA)
    residual = trajectory_balance_residual(log_pi, LOG_REF, REWARD, log_z, beta=BETA)
    clipped = clip_gap(residual, log_pi - log_pi.detach(), low=1e9, high=1e9)
    found = torch.autograd.grad(trajectory_balance_loss(clipped), log_pi)[0]
    vargrad = loss_of(log_pi, group_log_z(log_pi, LOG_REF, REWARD, GROUP, beta=BETA))
    torch.testing.assert_close(found, torch.autograd.grad(vargrad, log_pi)[0], rtol=0, atol=ROUNDING)


def test_gflowrl_published_loss_is_the_formula_of_its_paper():
    low, high = 0.1, 0.4
    log_old = LOG_PI + torch.tensor([0.2, -0.1, 0.05, 0.3, -0.2], dtype=torch.float64)
    z = group_log_z(log_old, LOG_REF, REWARD, GROUP, beta=BETA)
    residual = trajectory_balance_residual(LOG_PI, LOG_REF, REWARD, z, beta=BETA, length="mean", lengths=LENGTHS)
    found = trajectory_balance_loss(
        clip_gap(residual, (LOG_PI - log_old) / LENGTHS, low=low, high=high),
        weight=importance_weight(LOG_PI, log_old, cap=10.0),
    )
    expected, touched = 0.0, set()
    for i in range(5):
        members = [j for j in range(5) if GROUP[j] == GROUP[i]]
        z_i = sum(BETA * REWARD[j] + LOG_REF[j] - log_old[j] for j in members).item() / len(members)
        gap = z_i + ((log_old[i] - LOG_REF[i]) / LENGTHS[i] - BETA * REWARD[i]).item()
        g = min(max(gap, -low), high)
        touched.add((g == -low) - (g == high))
        w = min(math.exp(LOG_PI[i] - log_old[i]), 10.0)
        expected += w * (g + ((LOG_PI[i] - log_old[i]) / LENGTHS[i]).item()) ** 2 / 5
    assert found.item() == pytest.approx(expected, abs=ROUNDING)
    assert touched >= {1, -1}  # both ends of the clip took part


def test_clip_bounds_the_value_of_a_residual_and_leaves_its_gradient_alone():
    log_pi = LOG_PI.clone().requires_grad_()
    residual = log_pi - LOG_REF
    clipped = clip_gap(residual, log_pi - log_pi.detach(), low=0.2, high=0.3)
    torch.testing.assert_close(clipped, residual.clamp(-0.2, 0.3))
    assert torch.autograd.grad(clipped.sum(), log_pi)[0].tolist() == [1.0] * 5


def test_flowrl_published_loss_is_the_formula_of_its_paper():
    head = torch.tensor([0.3, 0.3, 0.3, -0.2, -0.2], dtype=torch.float64)
    log_old = LOG_PI - torch.tensor([0.1, 4.0, 0.0, -0.5, 0.2], dtype=torch.float64)
    residual = trajectory_balance_residual(
        LOG_PI, LOG_REF, REWARD, head, beta=15.0, length="mean", lengths=LENGTHS, learned=True
    )
    weight = importance_weight(LOG_PI, log_old, cap=10.0)
    found = trajectory_balance_loss(residual, weight=weight)
    expected = sum(
        min(math.exp(LOG_PI[i] - log_old[i]), 10.0)
        * (head[i] + LOG_PI[i] / LENGTHS[i] - 15 * REWARD[i] - LOG_REF[i] / LENGTHS[i]).item() ** 2
        for i in range(5)
    )
    assert found.item() == pytest.approx(expected / 5, rel=ROUNDING)
    assert weight[1] == 10.0


def test_flowrls_residual_vanishes_at_a_target_that_is_sharper_for_longer_completions():
    lam = 0.4
    log_pi = LOG_REF + LENGTHS * (BETA * REWARD - lam)
    found = trajectory_balance_residual(
        log_pi, LOG_REF, REWARD, torch.full_like(LOG_REF, lam), beta=BETA, length="mean", lengths=LENGTHS
    )
    assert found.abs().max() < ROUNDING


def test_only_a_learned_log_z_may_require_grad_and_it_gets_the_residuals_gradient():
    head = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="log_z requires grad"):
        loss_of(LOG_PI, head)
    residual = trajectory_balance_residual(LOG_PI, LOG_REF, REWARD, head, beta=BETA, learned=True)
    found = torch.autograd.grad(trajectory_balance_loss(residual), head)[0]
    torch.testing.assert_close(found, 2 * residual.detach() / 5, rtol=0, atol=ROUNDING)


def test_importance_weights_are_capped_detached_and_one_on_fresh_completions():
    log_pi = LOG_PI.clone().requires_grad_()
    assert importance_weight(log_pi, log_pi, cap=10.0).tolist() == [1.0] * 5
    weight = importance_weight(log_pi, LOG_PI - 5, cap=10.0)
    assert weight.tolist() == [10.0] * 5 and not weight.requires_grad


@pytest.mark.parametrize("length", ["sum", "mean"])
@pytest.mark.parametrize("source", ["frozen", "group", "learned"])
def test_gradients_agree_with_finite_differences(source, length):
    moving = LOG_PI + 0.3

    def loss(log_pi, head):
        settings = {"length": length, "lengths": LENGTHS}
        # The stopped gradients are constants, so the group's value is that of the sampler, fixed.
        log_z = {
            "frozen": torch.full_like(LOG_PI, 0.3),
            "group": group_log_z(moving, LOG_REF, REWARD, GROUP, beta=BETA, **settings),
            "learned": head.expand(5),
        }[source]
        residual = trajectory_balance_residual(
            log_pi, LOG_REF, REWARD, log_z, beta=BETA, learned=source == "learned", **settings
        )
        return trajectory_balance_loss(residual, weight=importance_weight(moving, LOG_PI, cap=10.0))

    head = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (LOG_PI.clone().requires_grad_(), head), eps=1e-6, atol=1e-8)


def test_mean_lengths_must_be_given_and_an_unknown_handling_is_refused():
    log_z = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs lengths"):
        loss_of(LOG_PI, log_z, length="mean")
    # beartype refuses it first, with its own exception, where the annotations are checked.
    with pytest.raises(Exception, match="max"):
        loss_of(LOG_PI, log_z, length="max", lengths=LENGTHS)


SAMPLES = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0], [0.0] * 8], dtype=torch.float64)


def test_a_star_value_is_the_hand_computed_one():
    value = 0.25 * reference_log_z(SAMPLES, beta1=0.5, beta2=0.25)
    assert value.tolist() == pytest.approx([0.5 * math.log((2 * math.exp(2) + 6) / 8), 0.0], abs=ROUNDING)


def test_a_star_value_with_equal_temperatures_is_the_plain_estimate_of_log_z():
    found = reference_log_z(SAMPLES, beta1=1 / BETA, beta2=1 / BETA)
    torch.testing.assert_close(found, torch.log(torch.exp(BETA * SAMPLES).mean(1)), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("beta2", [1e-3, 0.5, 2.0])
def test_a_star_po_loss_and_gradient_are_those_of_trl(beta2):
    value = torch.tensor([0.2, 0.2, 0.2, 0.7, 0.7], dtype=torch.float64)
    ours, theirs = LOG_PI.clone().requires_grad_(), LOG_PI.clone().requires_grad_()
    loss = a_star_po_loss(ours, LOG_REF, REWARD, value, beta2=beta2)
    reference = a2po_trainer_loss(theirs, LOG_REF, REWARD, value, beta2=beta2)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-10)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=ROUNDING)


def test_a_star_po_is_disas_loss_over_beta_squared_when_its_value_is_the_frozen_log_z():
    log_z = torch.tensor([0.4, 0.4, 0.4, 1.1, 1.1], dtype=torch.float64)
    found = a_star_po_loss(LOG_PI, LOG_REF, REWARD, log_z / BETA, beta2=1 / BETA)
    assert found.item() == pytest.approx(loss_of(LOG_PI, log_z).item() / BETA**2, abs=ROUNDING)


def test_a_masked_mean_reads_every_prompt_token_and_no_padding():
    hidden = torch.arange(12, dtype=torch.float64).reshape(2, 3, 2)
    found = masked_mean(hidden, torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert found.tolist() == [[3.0, 4.0], [8.0, 9.0]]


def test_a_group_of_the_policys_own_completions_expects_log_z_less_the_kl_to_the_target():
    # Two completions, all pairs of draws: E[group log Z] = log Z - KL(pi || pi*), whatever the group's size.
    log_pi = torch.log(torch.tensor([0.6, 0.4], dtype=torch.float64))
    log_ref = torch.log(torch.tensor([0.8, 0.2], dtype=torch.float64))
    reward = torch.tensor([0.0, 1.0], dtype=torch.float64)
    log_z = torch.logsumexp(log_ref + BETA * reward, 0)
    kl = (log_pi.exp() * (log_pi - log_ref - BETA * reward + log_z)).sum()
    pairs = torch.tensor(list(itertools.product(range(2), repeat=2)))
    group = torch.zeros(2, dtype=torch.long)
    expected = sum(
        log_pi[pair].sum().exp() * group_log_z(log_pi[pair], log_ref[pair], reward[pair], group, beta=BETA)[0]
        for pair in pairs
    )
    assert expected.item() == pytest.approx((log_z - kl).item(), abs=ROUNDING)
    assert kl > 0.01


def test_the_mean_hidden_state_is_over_the_masked_tokens_alone_be_it_one_or_none():
    hidden = torch.arange(12, dtype=torch.float64).view(2, 3, 2)
    found = masked_mean(hidden, torch.tensor([[0, 1, 0], [0, 1, 1]]))
    torch.testing.assert_close(found, torch.stack([hidden[0, 1], hidden[1, 1:].mean(0)]), rtol=0, atol=0)
    assert masked_mean(hidden, torch.zeros(2, 3, dtype=torch.long)).abs().max() == 0.0
