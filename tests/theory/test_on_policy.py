"""What an error eps in log Z does to trajectory balance on the policy's own completions: noise, and no bias."""

import itertools
import math

import pytest
import torch
from small_world import (
    BETA,
    GRADED,
    LENGTHS,
    LOG_REF,
    LOG_TARGET,
    LOG_Z,
    ROUNDING,
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

from disa.objectives.trajectory_balance import (
    anchored_baseline,
    audit_log_z_error,
    clip_gap,
    trajectory_balance_loss,
    trajectory_balance_residual,
)

EPS = [-1.0, 0.0, 0.5]
TARGET, REWARD, REF, LENGTH = tensor(LOG_TARGET), tensor(GRADED), tensor(LOG_REF), tensor(LENGTHS)
KL_GRADIENT = gradient(lambda theta: kl(log_policy(theta), TARGET))


def residual(log_pi, eps=0.0, completions=slice(None)):
    log_z = torch.full_like(REF[completions], LOG_Z + eps)
    return trajectory_balance_residual(log_pi[completions], REF[completions], REWARD[completions], log_z, beta=BETA)


def expected_gradient(per_completion, theta=THETA):
    """``E_pi[grad f(y)]``: the sampling distribution itself is not differentiated."""

    def expected(table):
        log_pi = log_policy(table)
        return (log_pi.detach().exp() * per_completion(log_pi)).sum()

    return gradient(expected, theta)


def test_the_differentiable_policy_is_the_oracles_table():
    assert same(log_policy(THETA_TARGET), LOG_TARGET)


def test_residual_is_zero_for_every_completion_at_the_target_with_the_exact_log_z_and_only_then():
    assert same(residual(TARGET), 0.0)
    assert residual(log_policy(THETA)).abs().max() > 0.1
    assert same(residual(TARGET, eps=0.5), 0.5)


@pytest.mark.parametrize("eps", EPS)
def test_expected_gradient_is_twice_that_of_the_reverse_kl_whatever_the_error(eps):
    found = expected_gradient(lambda log_pi: residual(log_pi, eps).square())
    assert same(found, 2 * KL_GRADIENT)
    assert KL_GRADIENT.abs().max() > 0.01


@pytest.mark.parametrize("eps", EPS)
def test_an_error_adds_known_terms_to_the_second_moment_of_the_gradient(eps):
    log_pi, squared_score = log_policy(THETA), scores().square().sum(1)
    pi, u = log_pi.exp(), log_pi - TARGET

    def second_moment(error):
        return (pi * 4 * residual(log_pi, error).square() * squared_score).sum()

    trace_fisher = (pi * squared_score).sum()
    gain = 8 * eps * (pi * u * squared_score).sum() + 4 * eps**2 * trace_fisher
    assert same(second_moment(eps) - second_moment(0.0), gain)


@pytest.mark.parametrize("eps", EPS)
def test_at_the_target_gradients_are_pure_noise_of_size_four_eps_squared_times_the_fisher_trace(eps):
    log_pi, s = log_policy(THETA_TARGET), scores(THETA_TARGET)
    samples = 2 * residual(log_pi, eps)[:, None] * s
    mean = (log_pi.exp()[:, None] * samples).sum(0)
    noise = (log_pi.exp() * samples.square().sum(1)).sum()
    trace_fisher = (log_pi.exp() * s.square().sum(1)).sum()
    assert same(mean, 0.0)
    assert same(noise, 4 * eps**2 * trace_fisher)
    assert trace_fisher > 0.1  # so that the noise is zero only without an error


@pytest.mark.parametrize("eps", EPS)
def test_mean_residual_is_the_kl_to_the_target_plus_the_error(eps):
    log_pi = log_policy(THETA)
    assert same((log_pi.exp() * residual(log_pi, eps)).sum(), kl(log_pi, TARGET) + eps)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_audit_is_exact_in_expectation_for_any_policy_and_any_number_of_completions(eps, k):
    log_pi = log_policy(THETA)
    delta = residual(log_pi, eps)
    groups = torch.tensor(list(itertools.product(range(SPACE.completions), repeat=k)))
    probability = log_pi[groups].sum(1).exp()
    eps_hat = torch.stack([audit_log_z_error(row) for row in delta[groups]])
    assert same((probability * (-eps_hat).exp()).sum(), math.exp(-eps), tolerance=1e-7)  # log k is a float32 number


def test_a_learned_log_z_settles_below_the_true_one_by_the_kl_to_the_target():
    log_pi = log_policy(THETA)
    learned = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = (log_pi.exp() * (learned + log_pi - REF - BETA * REWARD).square()).sum()
    slope = torch.autograd.grad(loss, learned)[0]
    optimum = -slope / 2  # the loss is learned^2 + slope * learned + const, so one Newton step from zero
    assert same(optimum, LOG_Z - kl(log_pi, TARGET))
    assert optimum < LOG_Z - 0.1


def group_gradients(k, eps, baseline):
    """Probability and summed gradient of every group of k completions: shapes (groups,), (groups, parameters)."""
    log_pi, s = log_policy(THETA), scores()
    groups = torch.tensor(list(itertools.product(range(SPACE.completions), repeat=k)))
    delta = residual(log_pi, eps)[groups]
    number = torch.arange(len(groups)).repeat_interleave(k)
    b = baseline(delta.flatten(), number).reshape(delta.shape)
    return log_pi[groups].sum(1).exp(), (2 * (delta - b)[..., None] * s[groups]).mean(1)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("prior_strength", [0.0, 1.0, 7.5, math.inf])
@pytest.mark.parametrize("k", [2, 3])
def test_anchored_baseline_leaves_the_expected_gradient_alone(eps, prior_strength, k):
    probability, gradients = group_gradients(
        k, eps, lambda delta, group: anchored_baseline(delta, group, prior_strength=prior_strength)
    )
    assert same(probability @ gradients, 2 * KL_GRADIENT.flatten(), tolerance=1e-11)  # up to 3,375 terms


@pytest.mark.parametrize("k", [2, 3])
def test_a_group_mean_that_includes_the_completion_itself_shrinks_the_expected_gradient(k):
    probability, gradients = group_gradients(
        k, 0.5, lambda delta, group: delta.reshape(-1, k).mean(1).repeat_interleave(k)
    )
    assert same(probability @ gradients, 2 * (k - 1) / k * KL_GRADIENT.flatten(), tolerance=1e-11)


def test_anchored_baseline_removes_most_of_the_noise_that_an_error_adds_near_the_target():
    log_pi, s = log_policy(THETA_TARGET), scores(THETA_TARGET)
    groups = torch.tensor(list(itertools.product(range(SPACE.completions), repeat=3)))
    delta, number = residual(log_pi, 0.5)[groups], torch.arange(len(groups)).repeat_interleave(3)
    noise = []
    for prior_strength in (math.inf, 1.0):
        b = anchored_baseline(delta.flatten(), number, prior_strength=prior_strength).reshape(delta.shape)
        gradients = (2 * (delta - b)[..., None] * s[groups]).mean(1)
        noise.append((log_pi[groups].sum(1).exp() * gradients.square().sum(1)).sum())
    # At the target every residual is eps, so b = 2/3 eps and one third of eps is left, squared.
    assert noise[1] / noise[0] == pytest.approx(1 / 9, abs=ROUNDING)


def test_loss_gradient_of_one_batch_is_the_mean_of_the_baselined_residual_times_the_score():
    batch = torch.tensor([0, 3, 3, 9])
    group = torch.tensor([0, 0, 1, 1])

    def loss(theta):
        delta = residual(log_policy(theta), 0.5, batch)
        return trajectory_balance_loss(delta, anchored_baseline(delta, group, prior_strength=1.0))

    delta = residual(log_policy(THETA), 0.5)[batch]
    b = anchored_baseline(delta, group, prior_strength=1.0)
    expected = (2 * (delta - b)[:, None] * scores()[batch]).mean(0)
    assert same(gradient(loss).flatten(), expected)


@pytest.mark.parametrize("eps", EPS)
def test_length_normalised_residuals_turn_an_error_into_a_bias_towards_short_or_long_completions(eps):
    def normalised(log_pi, error):
        return (LOG_Z + error + (log_pi - REF) / LENGTH - BETA * REWARD).square()

    shift = expected_gradient(lambda p: normalised(p, eps)) - expected_gradient(lambda p: normalised(p, 0.0))
    inverse_length = gradient(lambda theta: (log_policy(theta).exp() / LENGTH).sum())
    assert same(shift, 2 * eps * inverse_length)
    assert inverse_length.abs().max() > 0.01


def test_weighting_squared_residuals_by_length_keeps_the_target_only_without_an_error():
    def at_target(eps):
        return expected_gradient(lambda p: residual(p, eps).square() / LENGTH.square(), THETA_TARGET)

    assert same(at_target(0.0), 0.0)
    assert at_target(0.5).abs().max() > 0.01


@pytest.mark.parametrize("bound", [0.3, 1.0])
def test_a_clipped_residual_keeps_the_target_as_fixed_point_and_is_biased_on_the_way(bound):
    def clipped(eps):
        def per_completion(log_pi):
            delta = residual(log_pi, eps)
            return clip_gap(delta, log_pi - log_pi.detach(), low=bound, high=bound).square()

        return per_completion

    for eps in EPS:  # every residual is eps there, and what is the same for all completions has no gradient
        assert same(expected_gradient(clipped(eps), THETA_TARGET), 0.0)
    assert (residual(log_policy(THETA)).abs() > bound).any()
    assert (expected_gradient(clipped(0.0)) - 2 * KL_GRADIENT).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 512.0])
def test_a_constant_length_scale_divides_the_gradient_and_moves_no_target(scale):
    def scaled(log_pi):
        return residual(log_pi).square() / scale

    assert same(expected_gradient(scaled), 2 * KL_GRADIENT / scale)
    assert same(expected_gradient(scaled, THETA_TARGET), 0.0)
