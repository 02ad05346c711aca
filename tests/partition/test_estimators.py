import numpy as np
import pytest
from six_outcomes import GRADES, PASSES, PROPOSAL, REFERENCE, every_sample, exact_log_z, exact_q, population, sample

from disa.partition import estimate_log_partition_batch
from disa.partition.draws import collect_draws
from disa.partition.estimators import ESTIMATORS, anchored, calibrated_weights, mixture
from disa.partition.log_weights import linear_weights

BETA = 3.0
ROUNDING = 1e-12  # sums of at most a few thousand products of order one


@pytest.mark.parametrize("rewards", [PASSES, GRADES], ids=["binary", "graded"])
@pytest.mark.parametrize("sizes", [(1, 2), (2, 2), (0, 3), (3, 0)])
@pytest.mark.parametrize("method", ["anchored", "is"])
def test_anchored_and_importance_sampling_are_unbiased_over_every_possible_sample(rewards, sizes, method):
    sample_arrays, probability = every_sample(*sizes, rewards)
    q = ESTIMATORS[method](collect_draws(**sample_arrays, beta=BETA, reward_range=(0, 1)), BETA)
    assert probability @ q == pytest.approx(exact_q(rewards, BETA), abs=ROUNDING)


@pytest.mark.parametrize("sizes", [(1, 2), (2, 2), (0, 3)])
def test_mean_weight_is_one_in_expectation_over_every_possible_sample(sizes):
    sample_arrays, probability = every_sample(*sizes)
    batch = estimate_log_partition_batch(**sample_arrays, beta=BETA, method="anchored")
    assert probability @ batch.mean_weight == pytest.approx(1.0, abs=ROUNDING)


@pytest.mark.parametrize("rewards", [PASSES, GRADES], ids=["binary", "graded"])
@pytest.mark.parametrize("method", ["anchored", "is", "tis", "snis"])
def test_draws_in_exactly_the_expected_numbers_give_the_exact_log_z(rewards, method):
    batch = estimate_log_partition_batch(**population(100, rewards), beta=BETA, method=method)
    assert batch.log_z[0] == pytest.approx(exact_log_z(rewards, BETA), abs=ROUNDING)
    assert batch.q[0] == pytest.approx(exact_q(rewards, BETA), abs=ROUNDING)


def test_mixture_on_expected_numbers_differs_from_the_truth_by_half_a_hit():
    draws = collect_draws(**population(100), beta=BETA, reward_range=(0, 1))
    v = linear_weights(draws.log_w) * draws.soft
    w_bar = (v**2).sum() / v.sum()
    q = exact_q(PASSES, BETA)
    assert mixture(draws, BETA)[0] == pytest.approx((200 * q + w_bar / 2) / (200 + w_bar), abs=ROUNDING)


def test_mixture_equals_its_formula_written_out_for_one_prompt():
    rng = np.random.default_rng(0)
    one = sample(rng, 1, 10, 30, GRADES)
    ratio = np.exp(one["log_proposal"] - one["log_ref"])
    w = 1 / (0.25 + 0.75 * ratio)
    apart = w - w.mean()
    g = 1 - 40 * (w.mean() - 1) * apart / (apart @ apart + 2)
    assert (g > 0).all()
    v = g * w * np.expm1(BETA * one["rewards"]) / np.expm1(BETA)
    w_bar = (v**2).sum() / v.sum()
    expected = (v.sum() + w_bar / 2) / (40 + w_bar)
    assert mixture(collect_draws(**one, beta=BETA, reward_range=(0, 1)), BETA)[0] == pytest.approx(expected, rel=1e-9)


def test_calibrated_weights_are_the_regression_of_v_on_w_where_none_of_them_is_negative():
    draws = collect_draws(**sample(np.random.default_rng(5), 50, 8, 24, GRADES), beta=BETA, reward_range=(0, 1))
    w = np.exp(draws.log_w).reshape(50, 32)
    v, mean = w * draws.soft.reshape(50, 32), w.mean(axis=1)
    apart = w - mean[:, None]
    c = (apart * v).sum(axis=1) / ((apart**2).sum(axis=1) + 2)
    calibrated = calibrated_weights(draws).reshape(50, 32)
    positive = (calibrated > 0).all(axis=1)
    assert positive.sum() > 40
    found = (calibrated * draws.soft.reshape(50, 32)).mean(axis=1)
    np.testing.assert_allclose(found[positive], (v.mean(axis=1) - c * (mean - 1))[positive], rtol=1e-9)


def test_no_calibrated_weight_is_negative():
    # One draw carries all the weight, so the mean of w is twice what it should be, and the line goes below 0.
    draws = collect_draws(
        np.ones(16),
        prompt_index=np.zeros(16, dtype=int),
        log_ref=np.where(np.arange(16) == 3, 0.0, -60.0),
        log_proposal=np.where(np.arange(16) == 3, -30.0, -20.0),
        source=np.where(np.arange(16) == 3, 1, np.where(np.arange(16) == 2, 0, 1)),
        beta=BETA,
        reward_range=(0, 1),
    )
    assert np.exp(draws.log_w).mean() == pytest.approx(1.0)
    assert (calibrated_weights(draws) >= 0).all()


def test_control_variate_lowers_the_error_of_the_plain_weighted_mean():
    rng = np.random.default_rng(1)
    draws = collect_draws(**sample(rng, 4000, 16, 48, 1 - PASSES), beta=15.0, reward_range=(0, 1))
    errors = {f.__name__: np.sqrt(np.mean((f(draws, 15.0) - 0.95) ** 2)) for f in (mixture, anchored)}
    # v = w almost everywhere here, so regression removes nearly all variance; half is ample room.
    assert errors["mixture"] < 0.5 * errors["anchored"]


@pytest.mark.parametrize("hits, n", [(0, 4), (3, 8), (8, 8)])
def test_pass_rate_is_the_jeffreys_posterior_mean_of_reference_draws_alone(hits, n):
    rewards = np.r_[np.ones(hits), np.zeros(n - hits), np.ones(5)]
    batch = estimate_log_partition_batch(
        rewards,
        prompt_index=np.zeros(n + 5, dtype=int),
        log_ref=np.full(n + 5, -1.0),
        log_proposal=np.full(n + 5, -9.0),
        from_reference=np.arange(n + 5) < n,
        beta=15.0,
        method="pass_rate",
    )
    assert batch.q[0] == pytest.approx((hits + 0.5) / (n + 1), abs=ROUNDING)
    assert batch.method == ("pass_rate",)
    assert (batch.n[0], batch.n_reference[0]) == (n + 5, n)


def test_self_normalised_sampling_fails_where_the_proposal_writes_only_successes():
    outcomes_sharp = np.array([0.001, 0.001, 0.001, 0.001, 0.796, 0.2])
    rng = np.random.default_rng(2)
    sharp = sample(rng, 200, 0, 64, PASSES, outcomes_sharp)
    q = {m: estimate_log_partition_batch(**sharp, beta=15.0, method=m).q for m in ("snis", "anchored")}
    assert np.median(q["snis"]) > 0.5  # ten times the true 0.05: the mass of failures is never seen
    assert np.median(np.abs(q["anchored"] - 0.05)) < 0.01


def test_an_estimate_outside_its_interval_widens_it():
    # With weights of 0.1 the gamma interval of the weighted hits ends near 0.1; self-normalising says 1.
    arrays = {"log_ref": np.full(400, -3.0), "log_proposal": np.full(400, -3.0 + np.log(10)), "beta": 15.0}
    arrays |= {"prompt_index": np.zeros(400, dtype=int), "from_reference": np.arange(400) < 4}
    narrow, wide = (estimate_log_partition_batch(np.ones(400), **arrays, method=m) for m in ("anchored", "snis"))
    assert wide.q[0] == pytest.approx(1.0)
    assert narrow.interval_high[0] < wide.log_z[0] == wide.interval_high[0]
    assert wide.interval_low[0] == narrow.interval_low[0]


def test_truncation_lowers_only_weights_above_the_square_root_of_n():
    draws = collect_draws(
        np.array([1.0, 1.0, 0.0, 1.0]),
        prompt_index=np.zeros(4, dtype=int),
        log_ref=np.log([9.0, 1.0, 1.0, 1.0]) - 5,
        log_proposal=np.full(4, -5.0),
        from_reference=np.zeros(4, dtype=bool),
        beta=15.0,
        reward_range=(0, 1),
    )
    truncated = np.array([2.0, 1.0, 1.0, 1.0])  # 9 is cut at sqrt(4)
    expected = (truncated * [1, 1, 0, 1]).mean() + (truncated.mean() - 1) / np.expm1(15.0)
    assert ESTIMATORS["tis"](draws, 15.0)[0] == pytest.approx(expected, rel=1e-12)


def test_balance_weights_of_several_proposals_use_each_prompts_actual_shares():
    second = REFERENCE[::-1]
    outcomes, source = np.array([0, 4, 4, 5, 2, 5, 1, 0]), np.array([0, 1, 2, 2, 0, 1, 1, 1])
    prompt = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    draws = collect_draws(
        PASSES[outcomes],
        prompt_index=prompt,
        log_ref=np.log(REFERENCE[outcomes]),
        log_proposal=np.log(np.stack([PROPOSAL[outcomes], second[outcomes]], axis=1)),
        source=source,
        beta=15.0,
        reward_range=(0, 1),
    )
    laws = np.stack([REFERENCE, PROPOSAL, second])
    shares = np.array([[0.25, 0.25, 0.5], [0.25, 0.75, 0.0]])
    expected = REFERENCE[outcomes] / (shares[prompt] * laws[:, outcomes].T).sum(axis=1)
    np.testing.assert_allclose(np.exp(draws.log_w), expected, rtol=1e-12)


def test_two_proposals_are_unbiased_over_every_possible_sample():
    grid = np.array(np.meshgrid(*[np.arange(6)] * 3, indexing="ij")).reshape(3, -1).T
    laws = np.stack([REFERENCE, PROPOSAL, REFERENCE[::-1]])
    probability = laws[0, grid[:, 0]] * laws[1, grid[:, 1]] * laws[2, grid[:, 2]]
    flat = grid.ravel()
    batch = estimate_log_partition_batch(
        PASSES[flat],
        prompt_index=np.repeat(np.arange(216), 3),
        log_ref=np.log(REFERENCE[flat]),
        log_proposal=np.log(laws[1:, flat].T),
        source=np.tile([0, 1, 2], 216),
        beta=15.0,
        method="anchored",
    )
    assert (batch.q < 1).all()  # the clip would bias
    assert probability @ batch.q == pytest.approx(0.05, abs=ROUNDING)


def test_reference_draws_alone_weigh_exactly_one_whatever_their_log_probabilities():
    rng = np.random.default_rng(3)
    draws = collect_draws(
        rng.random(30),
        prompt_index=np.zeros(30, dtype=int),
        log_ref=rng.normal(-40, 20, 30),
        log_proposal=rng.normal(-80, 50, 30),
        from_reference=np.ones(30, dtype=bool),
        beta=15.0,
        reward_range=(0, 1),
    )
    assert (draws.log_w == 0.0).all()


def test_weights_equal_up_to_rounding_leave_the_control_variate_out():
    rng = np.random.default_rng(4)
    log_ref = rng.normal(-300, 30, 64)
    rewards = (rng.random(64) < 0.3).astype(float)
    batch = estimate_log_partition_batch(
        rewards,
        prompt_index=np.zeros(64, dtype=int),
        log_ref=log_ref,
        log_proposal=log_ref + rng.normal(0, 1e-13, 64),
        from_reference=np.arange(64) < 16,
        beta=15.0,
    )
    # The regression of rounding noise on rounding noise would move q at random by up to 1.
    assert batch.q[0] == pytest.approx((rewards.sum() + 0.5) / 65, abs=1e-9)
