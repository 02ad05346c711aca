"""Identities of the partition function and of its importance-sampling estimates."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from small_world import BETA, BINARY, GRADED, LENGTHS, LOG_PROPOSAL, LOG_REF, LOG_TARGET, LOG_Z, ROUNDING, SPACE, same

from disa.partition.draws import collect_draws
from disa.partition.estimators import ESTIMATORS
from disa.partition.log_weights import balance_log_weights, log_z_from_q, soft_success
from disa.testing import expectation, log_partition
from length_normalised import length_normalised_lambda

REWARDS = {"binary": BINARY, "graded": GRADED}
betas = st.floats(0.01, 40.0)
reward_tables = st.lists(st.floats(0.0, 1.0), min_size=SPACE.completions, max_size=SPACE.completions).map(np.array)


def every_sample(sources):
    """All samples with one draw per entry of ``sources`` (true: from the reference), and their probabilities."""
    completions = np.array(list(itertools.product(range(SPACE.completions), repeat=len(sources))))
    log_p = np.where(np.array(sources), LOG_REF[completions], LOG_PROPOSAL[completions]).sum(axis=1)
    return completions, np.exp(log_p)


def draws(completions, sources, rewards, log_ref=LOG_REF, log_proposal=LOG_PROPOSAL):
    return collect_draws(
        rewards[completions].ravel(),
        prompt_index=np.repeat(np.arange(len(completions)), completions.shape[1]),
        log_ref=log_ref[completions].ravel(),
        log_proposal=log_proposal[completions].ravel(),
        from_reference=np.tile(sources, len(completions)),
        beta=BETA,
        reward_range=(0.0, 1.0),
    )


@given(reward_tables, betas)
def test_z_is_one_plus_expm1_beta_times_a_probability(rewards, beta):
    soft = soft_success(rewards, beta, (0.0, 1.0))
    q = expectation(LOG_REF, soft)
    assert -ROUNDING <= q <= 1 + ROUNDING
    # q is a sum of positive terms, exact to a few roundings relative to itself at any size, and so is Z - 1.
    assert log_z_from_q(q, beta, (0.0, 1.0)) == pytest.approx(log_partition(LOG_REF, rewards, beta), abs=ROUNDING)


def test_for_two_valued_rewards_q_is_the_success_probability_at_every_beta():
    for beta in (0.1, 1.0, 15.0):
        assert same(expectation(LOG_REF, soft_success(BINARY, beta, (0.0, 1.0))), expectation(LOG_REF, BINARY))


@given(reward_tables, betas, betas)
def test_log_z_lies_within_beta_times_the_rewards_and_grows_with_beta_at_the_targets_mean_reward(rewards, a, b):
    low, high = sorted((a, b))
    log_z = [log_partition(LOG_REF, rewards, beta) for beta in (low, high)]
    assert -ROUNDING <= log_z[0] <= log_z[1] + ROUNDING
    assert log_z[1] <= high + ROUNDING
    # d log Z / d beta = E_pi*[r], which itself grows with beta: the mean slope lies between the end slopes.
    slopes = [expectation(LOG_REF + beta * rewards - z, rewards) for beta, z in zip((low, high), log_z, strict=True)]
    rise = log_z[1] - log_z[0]
    assert slopes[0] * (high - low) - 1e-10 <= rise <= slopes[1] * (high - low) + 1e-10


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
@pytest.mark.parametrize("sources", [[False, False], [True, False], [True, False, False]], ids=str)
@pytest.mark.parametrize("method", ["anchored", "is"])
def test_estimates_with_balance_heuristic_weights_are_unbiased_over_every_possible_sample(rewards, sources, method):
    completions, probability = every_sample(sources)
    q = ESTIMATORS[method](draws(completions, sources, rewards), BETA)
    assert same(np.exp(log_z_from_q(probability @ q, BETA, (0.0, 1.0))), np.exp(log_partition(LOG_REF, rewards, BETA)))


def test_mean_weight_is_one_or_less_by_the_reference_mass_that_the_proposal_cannot_write():
    mu = np.exp(LOG_PROPOSAL)
    assert same(mu @ np.exp(LOG_REF - LOG_PROPOSAL), 1.0)
    missing = LENGTHS == 1
    mu = np.where(missing, 0.0, mu) / mu[~missing].sum()
    weight = np.divide(np.exp(LOG_REF), mu, out=np.zeros_like(mu), where=mu > 0)
    assert same(mu @ weight, 1 - np.exp(LOG_REF)[missing].sum())


@given(st.floats(0.01, 1.0), st.floats(-1000, 1000))
def test_balance_heuristic_weights_never_exceed_one_over_the_reference_share(share, log_ratio):
    log_w = balance_log_weights(np.array([log_ratio]), np.array([share]))[0]
    assert log_w <= -np.log(share) + ROUNDING
    # and never exceed the plain ratio by more than the proposal's share lets them
    assert log_w <= log_ratio - np.log1p(-share) + ROUNDING if share < 1 else log_w == 0


def test_anchored_estimate_does_not_see_the_weights_of_unrewarded_draws_and_importance_sampling_does():
    completions, sources = np.arange(SPACE.completions)[None], [False] * SPACE.completions
    moved = np.where(BINARY == 0, LOG_REF - 5.0, LOG_REF)
    both = [draws(completions, sources, BINARY, log_ref) for log_ref in (LOG_REF, moved)]
    estimates = {method: [ESTIMATORS[method](d, BETA)[0] for d in both] for method in ("anchored", "is")}
    assert estimates["anchored"][0] == estimates["anchored"][1]
    assert abs(estimates["is"][0] - estimates["is"][1]) > 0.01


def test_a_proposal_that_never_writes_unrewarded_completions_loses_nothing_but_only_when_anchored():
    success = BINARY > 0
    mu = np.where(success, np.exp(LOG_PROPOSAL), 0.0) / np.exp(LOG_PROPOSAL)[success].sum()
    weight = np.divide(np.exp(LOG_REF), mu, out=np.zeros_like(mu), where=success)
    z = np.exp(log_partition(LOG_REF, BINARY, BETA))
    p = expectation(LOG_REF, BINARY)
    assert same(1 + mu @ (weight * np.expm1(BETA * BINARY)), z)
    assert same(mu @ (weight * np.exp(BETA * BINARY)), z - (1 - p))
    assert same(mu @ (weight * np.exp(BETA * BINARY)) / (mu @ weight), np.exp(BETA))  # self-normalised: p-hat = 1


def test_length_normalised_target_has_its_own_normaliser_which_is_not_log_z():
    # Every completion once, weighed by its probability: w = pi_ref / 1.
    enumerated = collect_draws(
        GRADED,
        prompt_index=np.zeros(SPACE.completions, dtype=int),
        log_ref=LOG_REF,
        log_proposal=np.zeros(SPACE.completions),
        from_reference=np.zeros(SPACE.completions, dtype=bool),
        lengths=LENGTHS,
        beta=BETA,
        reward_range=(0.0, 1.0),
    )
    root = length_normalised_lambda(enumerated, BETA, (0.0, 1.0))[0]
    log_pi = LOG_REF + LENGTHS * (BETA * GRADED - root)
    # The bisection stops at rounding; the sum's slope in lambda is the target's mean length, at most 3.
    assert same(np.exp(log_pi).sum(), 1.0, tolerance=1e-11)
    assert same(root + (log_pi - LOG_REF) / LENGTHS - BETA * GRADED, 0.0)
    assert abs(root - LOG_Z) > 0.1
    assert 0.5 * np.abs(np.exp(log_pi) - np.exp(LOG_TARGET)).sum() > 0.05
    geometric = np.log(np.exp(LOG_PROPOSAL) @ np.exp((LOG_REF - LOG_PROPOSAL) / LENGTHS + BETA * GRADED))
    assert min(abs(geometric - root), abs(geometric - LOG_Z)) > 0.1


@given(reward_tables, st.floats(0.05, 1.0))
def test_a_defensive_mixture_varies_at_most_as_much_as_its_reference_draws_alone(rewards, share):
    # N draws of a mixture with share alpha against its alpha N reference draws: E_mix[(w s)^2] <= E_ref[s^2] / alpha.
    soft = soft_success(rewards, BETA, (0.0, 1.0))
    weight = np.exp(balance_log_weights(LOG_REF - LOG_PROPOSAL, np.full(SPACE.completions, share)))
    mixture = share * np.exp(LOG_REF) + (1 - share) * np.exp(LOG_PROPOSAL)
    assert same(mixture @ (weight * soft), expectation(LOG_REF, soft))
    assert mixture @ (weight * soft) ** 2 <= expectation(LOG_REF, soft**2) / share + ROUNDING


@pytest.mark.parametrize("p", [0.05, 0.4])
def test_the_logarithm_biases_log_z_by_half_the_squared_coefficient_of_variation(p):
    # Exact sums over the number of hits. The next order is CV^4 / N^2, so N times the difference vanishes as 1 / N.
    a, left = np.expm1(BETA), []
    for n in (1000, 4000):
        hits = np.arange(n + 1)
        log_z = np.log1p(a * hits / n)
        bias = binom.pmf(hits, n, p) @ log_z - np.log1p(a * p)
        cv_squared = a**2 * p * (1 - p) / (1 + a * p) ** 2
        assert bias < 0
        left.append(abs(n * bias + cv_squared / 2))
        assert left[-1] < 0.1 * cv_squared
    assert left[1] == pytest.approx(left[0] / 4, rel=0.1)
