import math

import numpy as np
import pytest
import scipy.stats
from six_outcomes import GRADES, PASSES, PROPOSAL, every_sample, exact_q, sample

from disa.errors import DisaError
from disa.partition import estimate_log_partition, estimate_log_partition_batch
from disa.partition.betting import betting
from disa.partition.draws import collect_draws
from disa.partition.intervals import clopper_pearson, gamma

SHARP = np.array([0.001, 0.001, 0.001, 0.001, 0.796, 0.2])
KINDS = pytest.mark.parametrize("kind", [gamma, betting], ids=lambda f: f.__name__)


@pytest.mark.parametrize("rewards", [PASSES, GRADES], ids=["binary", "graded"])
@pytest.mark.parametrize("sizes", [(1, 2), (2, 3), (1, 4), (4, 0)])
@KINDS
def test_exact_coverage_over_every_small_sample_is_at_least_the_level(rewards, sizes, kind):
    arrays, probability = every_sample(*sizes, rewards)
    low, high = kind(collect_draws(**arrays, beta=3.0, reward_range=(0, 1)), 0.9)
    q = exact_q(rewards, 3.0)
    # No simulation: the probabilities of all samples whose interval holds q, summed. Rounding only.
    assert probability @ ((low <= q) & (q <= high)) >= 0.9 - 1e-9


@pytest.mark.parametrize("proposal", [PROPOSAL, SHARP], ids=["broad", "sharp"])
@pytest.mark.parametrize("level", [0.9, 0.5])
@KINDS
def test_simulated_coverage_is_at_least_the_level(proposal, level, kind):
    prompts = 2000
    rng = np.random.default_rng(5)
    draws = collect_draws(**sample(rng, prompts, 16, 48, PASSES, proposal), beta=15.0, reward_range=(0, 1))
    low, high = kind(draws, level)
    covered = np.mean((low <= 0.05) & (0.05 <= high))
    monte_carlo = math.sqrt(level * (1 - level) / prompts)
    assert covered >= level - 3 * monte_carlo


@KINDS
def test_each_side_misses_at_most_half_of_what_is_allowed(kind):
    prompts = 2000
    draws = collect_draws(**sample(np.random.default_rng(6), prompts, 400, 0), beta=15.0, reward_range=(0, 1))
    low, high = kind(draws, 0.2)
    monte_carlo = math.sqrt(0.4 * 0.6 / prompts)
    assert np.mean(low > 0.05) <= 0.4 + 3 * monte_carlo
    assert np.mean(high < 0.05) <= 0.4 + 3 * monte_carlo
    # A level that means something: intervals at 20% do miss now and then.
    assert np.mean((low > 0.05) | (high < 0.05)) > 0.02


def test_gamma_on_reference_draws_is_the_exact_poisson_interval():
    hits, n = 7, 50
    draws = collect_draws(
        (np.arange(n) < hits).astype(float),
        prompt_index=np.zeros(n, dtype=int),
        log_ref=np.full(n, -1.0),
        from_reference=np.ones(n, dtype=bool),
        beta=15.0,
        reward_range=(0, 1),
    )
    low, high = gamma(draws, 0.9)
    assert low[0] == pytest.approx(scipy.stats.gamma.ppf(0.05, hits) / n, rel=1e-9)
    assert high[0] == pytest.approx(scipy.stats.gamma.ppf(0.95, hits + 1) / n, rel=1e-9)


@pytest.mark.parametrize("hits, n", [(0, 12), (1, 12), (7, 50), (12, 12)])
def test_clopper_pearson_agrees_with_scipys_exact_binomial_test(hits, n):
    estimate = estimate_log_partition(
        np.arange(n) < hits,
        log_ref=np.full(n, -1.0),
        from_reference=np.ones(n, dtype=bool),
        beta=1.0,
        interval="clopper_pearson",
    )
    exact = scipy.stats.binomtest(hits, n).proportion_ci(0.9, "exact")
    assert estimate.interval == pytest.approx(tuple(np.log1p(np.expm1(1.0) * np.array(exact))), rel=1e-9, abs=1e-12)


def test_clopper_pearson_refuses_proposal_draws_and_graded_rewards():
    rng = np.random.default_rng(7)
    mixed = collect_draws(**sample(rng, 2, 4, 4), beta=15.0, reward_range=(0, 1))
    with pytest.raises(DisaError, match="reference draws only"):
        clopper_pearson(mixed, 0.9)
    graded = collect_draws(**sample(rng, 2, 40, 0, GRADES), beta=15.0, reward_range=(0, 1))
    with pytest.raises(DisaError, match="graded"):
        clopper_pearson(graded, 0.9)


@pytest.mark.parametrize("kind", ["gamma", "betting"])
def test_zero_hits_give_a_finite_wide_interval(kind):
    n = 64
    estimate = estimate_log_partition(
        np.zeros(n),
        log_ref=np.full(n, -5.0),
        log_proposal=np.full(n, -5.0),
        from_reference=np.arange(n) < 16,
        beta=15.0,
        interval=kind,
    )
    assert estimate.interval[0] == 0.0
    assert estimate.log_z < estimate.interval[1] < 15.0
    assert estimate.interval[1] - estimate.interval[0] > 10
    assert {"few_hits", "wide_interval"} <= set(estimate.flags)


@KINDS
def test_without_reference_draws_the_upper_end_stays_open(kind):
    draws = collect_draws(**sample(np.random.default_rng(8), 20, 0, 64), beta=15.0, reward_range=(0, 1))
    low, high = kind(draws, 0.9)
    assert (high == 1.0).all()
    assert (low > 0).any()


def test_betting_interval_is_less_than_twice_as_wide_as_clopper_pearson_on_the_pass_rate():
    # Markov's inequality needs sqrt(2 log 20) standard errors where the normal law needs 1.64, and a grid
    # of eight bets at most sqrt(2 (log 20 + log 8)): 1.5 to 1.95 times as wide.
    draws = collect_draws(**sample(np.random.default_rng(9), 200, 400, 0), beta=15.0, reward_range=(0, 1))
    widths = {f: np.mean(np.subtract(*f(draws, 0.9)[::-1])) for f in (betting, clopper_pearson)}
    assert widths[betting] < 1.95 * widths[clopper_pearson]


def test_betting_ends_solve_the_equation_of_the_hedged_capital():
    n, hits = 40, 9
    draws = collect_draws(
        (np.arange(n) < hits).astype(float),
        prompt_index=np.zeros(n, dtype=int),
        log_ref=np.full(n, -1.0),
        from_reference=np.ones(n, dtype=bool),
        beta=15.0,
        reward_range=(0, 1),
    )
    low, high = (end[0] for end in betting(draws, 0.9))
    up = np.geomspace(0.9, 0.9 / n, 8)
    capital_up = np.mean((1 + up * (1 / low - 1)) ** hits * (1 - up) ** (n - hits))
    down = np.geomspace(1, 2 / math.sqrt(n), 5)
    capital_down = [4, 1, 1, 1, 1] @ ((1 - down) ** hits * (1 + down * high / (1 - high)) ** (n - hits)) / 8
    # Bisection stops within 2e-6 relative of the root, where the capital changes about n times faster.
    assert capital_up == pytest.approx(2 / 0.1, rel=1e-3)
    assert capital_down == pytest.approx(2 / 0.1, rel=1e-3)


@pytest.mark.parametrize("interval", ["gamma", "betting"])
def test_interval_narrows_with_draws_and_always_holds_the_estimate(interval):
    rng, widths = np.random.default_rng(10), []
    for n in (8, 64, 512):
        batch = estimate_log_partition_batch(**sample(rng, 100, n, 3 * n), beta=15.0, interval=interval)
        assert (batch.interval_low <= batch.log_z).all() and (batch.log_z <= batch.interval_high).all()
        widths.append(np.median(batch.interval_high - batch.interval_low))
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize("n", [1, 4, 16, 256, 4096])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_one_hit_refutes_no_success_probability_that_writes_one_more_often_than_the_level_allows(n, level):
    arrays = {"log_ref": np.full(n, -1.0), "from_reference": np.ones(n, dtype=bool)}
    batch = estimate_log_partition_batch(
        np.arange(n) == 0, prompt_index=np.zeros(n, dtype=int), **arrays, beta=2.0, interval="betting", level=level
    )
    low = np.expm1(batch.interval_low[0]) / np.expm1(2.0)
    # A valid lower end is refuted by chance in at most half of what the level leaves.
    assert 0 < 1 - (1 - low) ** n <= (1 - level) / 2
