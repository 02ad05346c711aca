"""What an error in log Z does under a fixed behaviour distribution, and the two projections onto the target."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax
from small_world import (
    BETA,
    GRADED,
    LOG_PROPOSAL,
    LOG_REF,
    LOG_TARGET,
    LOG_Z,
    SPACE,
    THETA_TARGET,
    gradient,
    kl,
    log_policy,
    same,
    tensor,
)

from disa.testing import kl as exact_kl
from disa.testing import total_variation

EPS = [-1.0, -0.3, 0.3, 1.0]
TARGET, RHO = tensor(LOG_TARGET), tensor(LOG_PROPOSAL)


def off_policy_loss(log_pi, eps):
    """``F_eps = E_rho[(log pi - log pi* + eps)^2]``."""
    return (RHO.exp() * (log_pi - TARGET + eps).square()).sum()


@pytest.mark.parametrize("eps", EPS)
def test_off_policy_an_error_adds_or_removes_behaviour_cloning(eps):
    shift = gradient(lambda t: off_policy_loss(log_policy(t), eps)) - gradient(
        lambda t: off_policy_loss(log_policy(t), 0.0)
    )
    cloning = gradient(lambda t: kl(RHO, log_policy(t)))
    assert same(shift, -2 * eps * cloning)
    assert cloning.abs().max() > 0.01


@pytest.mark.parametrize("eps", EPS)
def test_off_policy_loss_differs_by_the_cloning_term_and_a_constant(eps):
    log_pi = TARGET.roll(1)  # any distribution will do
    constant = 2 * eps * kl(RHO, TARGET) + eps**2
    expected = off_policy_loss(log_pi, 0.0) - 2 * eps * kl(RHO, log_pi) + constant
    assert same(off_policy_loss(log_pi, eps), expected)


def stationary_policy(log_rho, log_target, eps, start):
    """Log-probabilities of a stationary point of F_eps over all distributions, and its remaining slope."""
    rho = np.exp(log_rho)

    def loss(x):
        log_pi = log_softmax(x)
        delta = log_pi - log_target + eps
        slope = 2 * rho * delta
        return rho @ delta**2, slope - slope.sum() * np.exp(log_pi)

    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 2000})
    return log_softmax(found.x), np.abs(loss(found.x)[1]).max()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.floats(-2.0, 2.0), st.floats(0.1, 2.0))
def test_off_policy_optimum_stays_within_the_envelope_for_any_behaviour_with_full_support(seed, eps, spread):
    rng = np.random.default_rng(seed)
    log_rho, log_target, start = (log_softmax(spread * rng.normal(size=6)) for _ in range(3))
    log_pi, slope = stationary_policy(log_rho, log_target, eps, start)
    # Residuals then share one sign up to slope / rho; rho stays above exp(-2 * spread * 4) / 6.
    slack = 1e-9 + slope * np.exp(-log_rho.min())
    assert slack < 1e-4
    assert total_variation(log_pi, log_target) <= 1 - np.exp(-abs(eps)) + slack
    if eps > 0:
        assert exact_kl(log_target, log_pi) <= eps + slack
    else:
        assert exact_kl(log_pi, log_target) <= -eps + slack


@pytest.mark.parametrize("eps", EPS)
def test_underestimated_log_z_pulls_the_off_policy_optimum_towards_the_behaviour_and_overestimated_repels_it(eps):
    log_pi, slope = stationary_policy(LOG_PROPOSAL, LOG_TARGET, eps, LOG_TARGET)
    assert slope < 1e-6  # double-precision line searches end near the square root of rounding
    moved = exact_kl(LOG_PROPOSAL, log_pi) - exact_kl(LOG_PROPOSAL, LOG_TARGET)
    assert moved * eps > 1e-3


def test_off_policy_a_small_error_costs_half_its_square_times_the_variation_of_the_density_ratio():
    ratio, pi_star = np.exp(LOG_TARGET - LOG_PROPOSAL), np.exp(LOG_TARGET)
    squared_variation = (pi_star @ ratio**2) / (pi_star @ ratio) ** 2 - 1
    eps = 1e-3
    log_pi, _ = stationary_policy(LOG_PROPOSAL, LOG_TARGET, eps, LOG_TARGET)
    # The next order is relative eps times ratios of at most ten or so.
    assert exact_kl(log_pi, LOG_TARGET) == pytest.approx(eps**2 / 2 * squared_variation, rel=0.02)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_weighted_likelihood_of_offline_draws_has_the_gradient_of_the_forward_kl(alpha, eps):
    mixture = alpha * np.exp(LOG_REF) + (1 - alpha) * np.exp(LOG_PROPOSAL)
    weight = np.exp(LOG_REF + BETA * GRADED - LOG_Z - eps) / mixture
    found = gradient(lambda theta: -(tensor(mixture * weight) * log_policy(theta)).sum())
    forward = gradient(lambda theta: kl(TARGET, log_policy(theta)))
    # An error in log Z scales a prompt's gradient, and so its share among prompts, but not its direction.
    assert same(found, np.exp(-eps) * forward)
    assert forward.abs().max() > 0.01


def test_both_projections_are_stationary_at_the_target_and_point_apart_elsewhere():
    for divergence in (lambda t: kl(log_policy(t), TARGET), lambda t: kl(TARGET, log_policy(t))):
        assert same(gradient(divergence, THETA_TARGET), 0.0)
    uniform = tensor(np.zeros((SPACE.prefixes, SPACE.vocabulary)))
    reverse = gradient(lambda t: kl(log_policy(t), TARGET), uniform).flatten()
    forward = gradient(lambda t: kl(TARGET, log_policy(t)), uniform).flatten()
    cosine = (reverse @ forward) / (reverse.norm() * forward.norm())
    assert 0 < cosine < 0.99
