import numpy as np
import pytest
import scipy.stats

from disa.partition import estimate_log_partition_batch
from disa.partition.draws import collect_draws
from disa.partition.psis import fit_generalised_pareto, smoothed_log_weights

array_stats = pytest.importorskip("arviz_stats.base").array_stats


def plain_draws(log_w, prompt=None):
    """Proposal draws alone, whose weights are pi_ref / mu."""
    log_w = np.asarray(log_w, dtype=float)
    return {
        "rewards": np.ones(len(log_w)),
        "prompt_index": np.zeros(len(log_w), dtype=int) if prompt is None else prompt,
        "log_ref": log_w - 40.0,
        "log_proposal": np.full(len(log_w), -40.0),
        "from_reference": np.zeros(len(log_w), dtype=bool),
        "beta": 2.0,
    }


@pytest.mark.parametrize("n", [25, 40, 100, 224, 225, 226, 290, 1000, 5000])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_k_hat_and_smoothed_weights_agree_with_arviz(n, spread):
    log_w = np.random.default_rng(n).normal(0, spread, n)
    arrays = plain_draws(log_w)
    arviz_log_w, arviz_k = array_stats.psislw(-log_w)
    if np.isnan(arviz_k):
        pytest.skip("this release of arviz-stats fits no tail of so few draws")
    assert estimate_log_partition_batch(**arrays).pareto_k[0] == pytest.approx(float(arviz_k), abs=1e-9)
    ours = smoothed_log_weights(collect_draws(**arrays, reward_range=(0, 1)))
    # ArviZ normalises its weights to sum to one; 1e-9 leaves room for its sums in log space.
    np.testing.assert_allclose(ours - np.log(np.exp(ours).sum()), arviz_log_w, atol=1e-9)


def test_smoothing_leaves_the_body_alone_keeps_the_order_and_never_exceeds_the_largest_weight():
    log_w = np.random.default_rng(0).normal(0, 3, 400)
    smooth = smoothed_log_weights(collect_draws(**plain_draws(log_w), reward_range=(0, 1)))
    body = np.argsort(log_w)[:-60]
    np.testing.assert_allclose(smooth[body], log_w[body], atol=1e-12)  # log_w came as a difference of two logs
    assert (np.diff(smooth[np.argsort(log_w)]) >= 0).all()
    assert smooth.max() <= log_w.max() + 1e-12


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.8])
def test_fit_recovers_shape_and_scale_of_generalised_pareto_samples(k):
    x = np.sort(scipy.stats.genpareto.rvs(k, scale=2.0, size=(200, 2000), random_state=1), axis=1)
    fitted_k, sigma = fit_generalised_pareto(x)
    # The standard error of one fit is about (1 + k) / sqrt(2000) < 0.05; of the mean of 200, a fourteenth of it.
    # The prior (ten draws at k = 1/2) moves k by at most 0.004.
    assert fitted_k.mean() == pytest.approx(k, abs=0.02)
    assert sigma.mean() == pytest.approx(2.0, abs=0.05)


def test_batched_fits_equal_single_fits_for_ragged_prompts():
    rng = np.random.default_rng(2)
    sizes = [30, 31, 100, 25, 300, 100, 24, 1000]
    prompt = np.repeat(np.arange(len(sizes)), sizes)
    log_w = rng.normal(0, 1, len(prompt)) * rng.uniform(0.5, 2, len(sizes))[prompt]
    together = estimate_log_partition_batch(**plain_draws(log_w, prompt))
    for i in range(len(sizes)):
        alone = estimate_log_partition_batch(**plain_draws(log_w[prompt == i]))
        np.testing.assert_allclose(together.pareto_k[i], alone.pareto_k[0], rtol=1e-9)
        assert together.pareto_status[i] == alone.pareto_status[0] == ("ok" if sizes[i] >= 25 else "few_draws")


@pytest.mark.parametrize(
    "log_w, status",
    [
        (np.random.default_rng(3).normal(size=24), "few_draws"),
        (np.zeros(100), "ties"),
        (np.where(np.arange(100) < 10, 1.0, -1.0), "ties"),
        (1e-13 * np.random.default_rng(4).normal(size=100), "ties"),
        (np.full(100, -np.inf), "ties"),
    ],
    ids=["24 draws", "constant", "two values", "equal up to rounding", "all zero"],
)
def test_a_tail_that_cannot_be_fitted_has_a_named_status_and_no_exception(log_w, status):
    batch = estimate_log_partition_batch(**plain_draws(log_w), method="psis")
    assert np.isnan(batch.pareto_k[0]) and batch.pareto_status == (status,)
    assert np.isfinite(batch.log_z[0])


def test_heavy_tail_is_flagged_only_without_reference_draws():
    log_w = np.random.default_rng(5).normal(0, 3, 200)
    arrays = plain_draws(log_w)
    without = estimate_log_partition_batch(**arrays)
    assert without.pareto_k[0] > 0.5 and "heavy_tail" in without.flags[0]
    # One reference draw bounds the weights by 1000: the tail still looks heavy, but it has an end.
    log_w = np.random.default_rng(6).normal(0, 3, 1000)
    arrays = plain_draws(log_w) | {"from_reference": np.arange(1000) == np.argmin(log_w)}
    bounded = estimate_log_partition_batch(**arrays, method="anchored")
    assert bounded.pareto_k[0] > 0.5 and "heavy_tail" not in bounded.flags[0]


@pytest.mark.parametrize(("tied", "status"), [(4, "ok"), (5, "ties")])
def test_a_tail_is_fitted_as_long_as_its_first_quartile_lies_above_the_cut(tied, status):
    # A tail of 20, whose first quartile is its fifth: the first ones equal the largest weight below the tail.
    log_w = np.concatenate([np.linspace(-5, -2, 79), np.full(1 + tied, -1.0), np.linspace(-0.9, 1.0, 20 - tied)])
    assert estimate_log_partition_batch(**plain_draws(log_w)).pareto_status == (status,)
