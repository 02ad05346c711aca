import numpy as np
import pytest
from six_outcomes import GRADES, PASSES, PROPOSAL, REFERENCE, population, sample

from disa.partition import estimate_log_partition_batch
from disa.partition.diagnostics import bennett_null_test, coverage_profile, effective_sample_sizes
from disa.partition.draws import collect_draws


def draws_of(arrays):
    return collect_draws(**arrays, beta=3.0, reward_range=(0, 1))


def test_effective_sample_sizes_equal_their_definitions():
    draws = draws_of(sample(np.random.default_rng(0), 1, 10, 30, GRADES))
    w = np.exp(draws.log_w)
    v = w * draws.soft
    ess, hits_ess = effective_sample_sizes(draws)
    assert ess[0] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-12)
    assert hits_ess[0] == pytest.approx(v.sum() ** 2 / (v**2).sum(), rel=1e-12)


def test_equal_weights_count_every_draw_and_every_hit():
    arrays = sample(np.random.default_rng(1), 1, 40, 0)
    batch = estimate_log_partition_batch(**arrays, beta=15.0)
    assert batch.ess[0] == 40 and batch.hits_ess[0] == arrays["rewards"].sum()


def test_effective_sample_sizes_are_zero_where_nothing_weighs():
    draws = collect_draws(
        [1.0, 0.0],
        prompt_index=[0, 0],
        log_ref=[-np.inf, -np.inf],
        log_proposal=[-1.0, -1.0],
        from_reference=[False, False],
        beta=1.0,
        reward_range=(0, 1),
    )
    assert [x[0] for x in effective_sample_sizes(draws)] == [0.0, 0.0]


def test_hits_count_even_where_their_squared_weights_are_below_the_smallest_float():
    draws = collect_draws(
        [0.0, 1.0, 1.0],
        prompt_index=[0, 0, 0],
        log_ref=[-1.0, -401.0, -401.0],
        log_proposal=[-1.0, -1.0, -1.0],
        from_reference=[False] * 3,
        beta=15.0,
        reward_range=(0, 1),
    )
    ess, hits_ess = effective_sample_sizes(draws)
    assert (ess[0], hits_ess[0]) == (1.0, 2.0)


def test_bennett_ratio_is_zero_when_draws_come_in_exactly_the_expected_numbers():
    facts = bennett_null_test(draws_of(population(100)))
    assert facts["log_ratio"] == pytest.approx(0.0, abs=1e-9)
    assert facts["prompts"] == 1


def test_bennett_ratio_finds_a_constant_error_in_the_proposals_log_probabilities():
    arrays = sample(np.random.default_rng(2), 300, 16, 48)
    honest = bennett_null_test(draws_of(arrays))
    shifted = bennett_null_test(draws_of(arrays | {"log_proposal": arrays["log_proposal"] + 0.7}))
    assert shifted["log_ratio"] - honest["log_ratio"] == pytest.approx(0.7, abs=1e-9)  # equivariance
    assert shifted["log_ratio"] > 10 * shifted["standard_error"]


@pytest.mark.parametrize("prompts, sizes", [(1, (128, 128)), (20, (4, 12)), (100, (16, 48))])
def test_bennett_standard_error_matches_the_spread_over_replications_and_the_mean_is_zero(prompts, sizes):
    rng = np.random.default_rng(4)
    facts = [bennett_null_test(draws_of(sample(rng, prompts, *sizes))) for _ in range(400)]
    log_ratio, error = (np.array([f[key] for f in facts]) for key in ("log_ratio", "standard_error"))
    # Spread over 400 replicates is known to 3.5%, and the error of a first-order formula is a few percent.
    assert log_ratio.std() == pytest.approx(error.mean(), rel=0.15)
    # Three standard errors of the mean of 400, and the bias of a ratio, of the order of one variance.
    assert abs(log_ratio.mean()) < 3 * error.mean() / 20 + error.mean() ** 2


def test_bennett_ratio_ignores_prompts_without_draws_of_both_kinds():
    mixed = sample(np.random.default_rng(5), 4, 16, 48)
    alone = sample(np.random.default_rng(6), 4, 64, 0)
    both = {key: np.concatenate([alone[key], mixed[key]]) for key in mixed}
    both["prompt_index"][256:] += 4
    assert bennett_null_test(draws_of(both)) == pytest.approx(bennett_null_test(draws_of(mixed)), rel=1e-9)
    assert bennett_null_test(draws_of(alone)) == {"prompts": 0, "log_ratio": None, "standard_error": None}


def test_coverage_profile_is_the_distribution_of_log_ratios_over_reference_successes():
    rewards = 1 - PASSES  # outcomes 0 to 3 pass
    draws = draws_of(population(100, rewards))
    ratio, p = np.log(REFERENCE / PROPOSAL)[:4], REFERENCE[:4] / REFERENCE[:4].sum()
    thresholds = np.array([-5.0, 0.0, 1.0, 1.5, 3.0])
    expected = [(p * (ratio >= t)).sum() for t in thresholds]
    np.testing.assert_allclose(coverage_profile(draws, thresholds), expected, atol=1e-12)


def test_coverage_profile_is_missing_without_reference_successes():
    draws = draws_of(sample(np.random.default_rng(6), 2, 0, 50))
    assert np.isnan(coverage_profile(draws, np.array([0.0]))).all()


def test_missing_reference_mass_is_flagged():
    sharp = np.array([1e-9, 1e-9, 1e-9, 1e-9, 0.8, 0.2 - 4e-9])
    batch = estimate_log_partition_batch(**sample(np.random.default_rng(7), 1, 0, 64, PASSES, sharp), beta=15.0)
    assert batch.mean_weight[0] < 0.5 and "missing_mass" in batch.flags[0]
