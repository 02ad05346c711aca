"""Completions that an earlier policy drew: what weights, their cap and the baseline do to the expected gradient.

The policy is held fixed while the completions are averaged over. That is so for rollouts of a policy k steps old; of
completions that have trained the policy themselves it is an approximation that no weight improves.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from small_world import (
    BETA,
    GRADED,
    LOG_PROPOSAL,
    LOG_REF,
    LOG_TARGET,
    LOG_Z,
    REFERENCE,
    SPACE,
    THETA,
    THETA_TARGET,
    gradient,
    kl,
    log_policy,
    same,
    scores,
    tensor,
)

from disa.objectives.log_z import group_log_z
from disa.objectives.trajectory_balance import (
    anchored_baseline,
    effective_share,
    importance_weight,
    trajectory_balance_loss,
    trajectory_balance_residual,
)

EPS = [-1.0, 0.0, 0.5]
REWARD, REF, TARGET = tensor(GRADED), tensor(LOG_REF), tensor(LOG_TARGET)
SAMPLER = log_policy(0.5 * THETA + 0.5 * torch.tensor(np.roll(THETA.numpy(), 1, axis=0)))
"""The policy of an earlier step: weights from 0.3 to 3."""
KL_GRADIENT = gradient(lambda theta: kl(log_policy(theta), TARGET)).flatten()
SUMS = 1e-11  # up to 3,375 groups of a few terms below 100


def residual(log_pi, rows=slice(None), eps=0.0):
    log_z = torch.full_like(REF[rows], LOG_Z + eps)
    return trajectory_balance_residual(log_pi[rows], REF[rows], REWARD[rows], log_z, beta=BETA)


def groups_of(k, log_sampler):
    """Every group of k completions as one long batch, its group numbers, and each group's probability."""
    groups = torch.tensor(list(itertools.product(range(SPACE.completions), repeat=k)))
    number = torch.arange(len(groups)).repeat_interleave(k)
    return groups.flatten(), number, log_sampler[groups].sum(1).exp()


def expected_gradient(k, *, cap, eps=0.0, n0=1.0, theta=THETA, log_sampler=SAMPLER, weighted_baseline=True):
    """Of ``mean(w (delta - b)^2)`` over groups of k that the sampler drew; float64, by enumeration."""
    rows, number, probability = groups_of(k, log_sampler)

    def expected(table):
        log_pi = log_policy(table)
        delta, weight = residual(log_pi, rows, eps), importance_weight(log_pi, log_sampler, cap=cap)[rows]
        b = anchored_baseline(delta, number, prior_strength=n0, weight=weight if weighted_baseline else None)
        # The loss is a mean over the batch: of each row by itself it is the square to be averaged.
        loss = trajectory_balance_loss(delta, b, probability.repeat_interleave(k) * weight)
        return loss * len(rows) / k

    return gradient(expected, theta).flatten()


def bias_of_the_cap(cap, *, baseline, eps=0.0):
    """``-2 E_sampler[(w - cap)^+ (delta - b) grad log pi]`` for the expected baseline b."""
    log_pi = log_policy(THETA)
    cut = ((log_pi - SAMPLER).exp() - cap).clamp(min=0)
    return -2 * (SAMPLER.exp() * cut * (residual(log_pi, eps=eps) - baseline)) @ scores()


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("n0", [0.0, 1.0, math.inf])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("weighted_baseline", [True, False])
def test_without_a_cap_the_weighted_gradient_is_that_of_the_reverse_kl_whatever_baseline_and_error(
    k, n0, eps, weighted_baseline
):
    found = expected_gradient(k, cap=math.inf, eps=eps, n0=n0, weighted_baseline=weighted_baseline)
    assert same(found, 2 * KL_GRADIENT, tolerance=SUMS)
    assert KL_GRADIENT.abs().max() > 0.01


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_cap_takes_off_exactly_the_gradient_of_what_it_cuts(k, eps):
    cap, log_pi = 1.5, log_policy(THETA)
    rows, number, probability = groups_of(k, SAMPLER)
    weight = importance_weight(log_pi, SAMPLER, cap=cap)
    b = anchored_baseline(residual(log_pi, rows, eps), number, prior_strength=1.0, weight=weight[rows])
    expected_b = (probability * b.view(-1, k).mean(1)).sum()  # independent of the completion that it is taken from
    bias = bias_of_the_cap(cap, baseline=expected_b, eps=eps)
    assert same(expected_gradient(k, cap=cap, eps=eps), 2 * KL_GRADIENT + bias, tolerance=SUMS)
    assert bias.abs().max() > 1e-3


def test_without_weights_a_baseline_clones_the_sampler_or_repels_from_it():
    def unweighted(n0):
        return expected_gradient(2, cap=1e-300, n0=n0, weighted_baseline=False) * 1e300

    rows, number, probability = groups_of(2, SAMPLER)
    b = anchored_baseline(residual(log_policy(THETA), rows), number, prior_strength=1.0)
    mean_b = (probability * b.view(-1, 2).mean(1)).sum()
    towards_sampler = gradient(lambda t: kl(SAMPLER, log_policy(t))).flatten()
    assert same(unweighted(1.0) - unweighted(math.inf), 2 * mean_b * towards_sampler, tolerance=SUMS)
    assert (mean_b * towards_sampler).abs().max() > 0.01


@pytest.mark.parametrize("cap", [1.0, 1.5, math.inf])
def test_at_the_target_with_the_exact_log_z_no_completion_pulls_whoever_drew_it(cap):
    log_pi, rows = log_policy(THETA_TARGET), torch.arange(SPACE.completions).repeat(2)
    delta = residual(log_pi, rows)
    weight = importance_weight(log_pi, SAMPLER, cap=cap)[rows]
    b = anchored_baseline(delta, rows, prior_strength=1.0, weight=weight)
    assert same(weight * (delta - b), 0.0)


@pytest.mark.parametrize("eps", [-1.0, 0.5])
def test_at_the_target_an_error_of_log_z_pulls_only_by_what_the_cap_cuts_and_the_baseline_leaves(eps):
    pulls = {}
    for n0 in (0.0, 1.0, math.inf):
        uncapped = expected_gradient(3, cap=math.inf, eps=eps, n0=n0, theta=THETA_TARGET)
        assert same(uncapped, 0.0, tolerance=SUMS)
        pulls[n0] = expected_gradient(3, cap=1.5, eps=eps, n0=n0, theta=THETA_TARGET).norm().item()
    cut = ((TARGET - SAMPLER).exp() - 1.5).clamp(min=0)
    plain = 2 * abs(eps) * ((SAMPLER.exp() * cut) @ scores(THETA_TARGET)).norm().item()
    assert pulls[math.inf] == pytest.approx(plain, abs=SUMS)
    assert pulls[0.0] < 1e-10  # every residual is eps, and so is the mean of the others
    # Of eps the baseline leaves n0 / (n0 + w_1 + w_2), with the weights of two others.
    weight = importance_weight(TARGET, SAMPLER, cap=1.5)
    others = weight[:, None] + weight
    left = (SAMPLER.exp()[:, None] * SAMPLER.exp() / (1 + others)).sum().item()
    assert pulls[1.0] == pytest.approx(left * plain, abs=SUMS)
    assert left < 0.7


@pytest.mark.parametrize("k", [2, 3])
def test_a_group_s_mean_from_when_it_was_drawn_also_holds_the_policy_near_the_sampler(k):
    rows, number, probability = groups_of(k, SAMPLER)
    log_z = group_log_z(SAMPLER[rows], REF[rows], REWARD[rows], number, beta=BETA)

    def expected(table):
        log_pi = log_policy(table)
        delta = trajectory_balance_residual(log_pi[rows], REF[rows], REWARD[rows], log_z, beta=BETA)
        weight = importance_weight(log_pi, SAMPLER, cap=math.inf)[rows]
        return trajectory_balance_loss(delta, None, probability.repeat_interleave(k) * weight) * len(rows) / k

    back = gradient(lambda t: kl(log_policy(t), SAMPLER)).flatten()
    wanted = 2 * (1 - 1 / k) * KL_GRADIENT + 2 / k * back
    assert same(gradient(expected).flatten(), wanted, tolerance=SUMS)
    assert back.abs().max() > 0.01


def spread(cap, n0, weighted):
    """Summed variance of the gradient of a group of three."""
    k, log_pi, s = 3, log_policy(THETA), scores()
    rows, number, probability = groups_of(k, SAMPLER)
    delta, weight = residual(log_pi, rows), importance_weight(log_pi, SAMPLER, cap=cap)[rows]
    b = anchored_baseline(delta, number, prior_strength=n0, weight=weight if weighted else None)
    per_group = ((2 * weight * (delta - b))[:, None] * s[rows]).view(-1, k, s.shape[1]).mean(1)
    mean = probability @ per_group
    return (probability @ per_group.square().sum(1) - mean.square().sum()).item()


def test_the_cap_reduces_the_variance_that_it_is_there_for():
    assert spread(1.5, 1.0, True) < 0.9 * spread(math.inf, 1.0, True)


def test_the_effective_share_is_that_of_equal_weights_and_of_one_that_carries_all():
    assert same(effective_share(torch.full((7,), -300.0, dtype=torch.float64)), 1.0)
    assert same(effective_share(torch.tensor([0.0, -800.0, -900.0, -1e4], dtype=torch.float64)), 0.25)
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    assert same(effective_share(weights.log()), 3.5**2 / (3 * 5.25))


def test_the_expected_weights_have_mean_one_and_the_log_weight_the_kl_from_the_sampler():
    log_weight = log_policy(THETA) - SAMPLER
    assert same((SAMPLER.exp() * log_weight.exp()).sum(), 1.0)
    assert same(-(SAMPLER.exp() * log_weight).sum(), kl(SAMPLER, log_policy(THETA)))
    assert kl(SAMPLER, log_policy(THETA)) > 0.05


def test_an_offline_proposal_is_a_sampler_like_any_other():
    found = expected_gradient(2, cap=math.inf, log_sampler=tensor(LOG_PROPOSAL))
    assert same(found, 2 * KL_GRADIENT, tolerance=1e-10)  # weights up to some hundred


def descent(steps=40, rate=0.3):
    """Policies of exact gradient descent on KL(pi || pi*), from the reference."""
    thetas = [torch.tensor(REFERENCE.logits[0])]
    for _ in range(steps):
        thetas.append(thetas[-1] - rate * gradient(lambda t: kl(log_policy(t), TARGET), thetas[-1]))
    return thetas


DELAYS = (1, 2, 4, 8, 16)


def stale_gradients(eps, cap):
    """By delay: expected gradient of completions of the policy k steps ago, and the one wanted; effective shares."""
    thetas, found = descent(), {}
    for k in DELAYS:
        sampler = log_policy(thetas[20 - k])
        wanted = 2 * gradient(lambda t: kl(log_policy(t), TARGET), thetas[20]).flatten()
        got = expected_gradient(2, cap=cap, eps=eps, theta=thetas[20], log_sampler=sampler)
        share = 1 / (sampler.exp() * (log_policy(thetas[20]) - sampler).exp().square()).sum()
        found[k] = got, wanted, share.item()
    return found


@pytest.mark.parametrize("eps", [-0.3, 0.0, 0.3])
def test_rollouts_of_a_policy_one_to_sixteen_steps_old_have_no_bias_and_a_falling_effective_share(eps):
    found = stale_gradients(eps, math.inf)
    for got, wanted, _ in found.values():
        assert same(got, wanted, tolerance=SUMS)
    shares = [share for *_, share in found.values()]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.99 and shares[-1] < 0.9


def test_with_the_cap_stale_rollouts_are_biased_once_a_weight_reaches_it_and_by_an_error_of_log_z():
    bias = {
        eps: {k: (got - wanted).norm() / wanted.norm() for k, (got, wanted, _) in stale_gradients(eps, 1.2).items()}
        for eps in (-0.3, 0.0, 0.3)
    }
    for found in bias.values():
        assert max(found[k] for k in (1, 2, 4)) < 1e-10  # no completion became 1.2 times as likely
        assert 0.02 < found[8] < 0.06 and 0.2 < found[16] < 0.35
    # What the baseline leaves of eps adds to the residuals of the cut completions, or takes from them.
    assert bias[0.3][16] < bias[0.0][16] < bias[-0.3][16]
