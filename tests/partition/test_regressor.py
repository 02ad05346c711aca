import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import quad
from scipy.special import expit, log_expit
from six_outcomes import PASSES, sample
from transformers import LlamaConfig, LlamaForCausalLM

from disa.errors import DisaError
from disa.partition import estimate_log_partition_batch
from disa.partition.features import features_fingerprint, prompt_features
from disa.partition.log_weights import log_z_from_q
from disa.partition.logit_normal import log_marginal
from disa.partition.regressor import Regressor, log_z_posterior
from disa.partition.regressor_fit import _recalibrate, fit_regressor, pseudo_counts
from disa.partition.regressor_report import _coverage, report_regressor
from disa.runs.provenance import Fingerprint

PROMPTS, FEATURES = 500, 16
RANGE = (0.0, 1.0)
# Hits, draws, prior mean, prior width; no hits and all hits make one-sided integrands.
CASES = [
    (0, 8, 0, 1),
    (0, 8, -5, 6),
    (3, 8, 0, 0.05),
    (8, 8, 3, 3),
    (0, 1e5, -5, 6),
    (50, 1000, 0, 2),
    (0.7, 2.3, -5, 6),
]


def simulate(seed, draws=8):
    """Features, logit q and hits of 500 prompts to fit and 500 to hold out."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=FEATURES)
    features = rng.normal(size=(2 * PROMPTS, FEATURES))
    logit = -2.5 + 2.0 * features @ direction / np.linalg.norm(direction) + rng.normal(size=2 * PROMPTS)
    return features, logit, rng.binomial(draws, expit(logit)).astype(float)


def rmse(estimate, truth):
    return np.sqrt(np.mean((estimate - truth) ** 2))


def fit(k, n, features):
    return fit_regressor(k, n, features, features_fingerprint="simulated")


@pytest.fixture(scope="module")
def carried():
    features, logit, k = simulate(0)
    return fit(k[:PROMPTS], np.full(PROMPTS, 8.0), features[:PROMPTS]), features, logit, k


@pytest.fixture(scope="module")
def nothing():
    _, logit, k = simulate(0)
    features = np.random.default_rng(99).normal(size=(2 * PROMPTS, FEATURES))
    return fit(k[:PROMPTS], np.full(PROMPTS, 8.0), features[:PROMPTS]), features, logit, k


@pytest.mark.parametrize(("k", "n", "mean", "width"), CASES)
def test_the_marginal_likelihood_and_its_gradient_match_adaptive_integration(k, n, mean, width):
    def integral(m, s, factor):
        grid = np.linspace(m - 9 * s, m + 9 * s, 20001)
        top = grid[np.argmax(joint(grid, m, s))]
        height = joint(top, m, s)
        pieces = [m - 9 * s, *(top + np.array([-3, -0.5, 0, 0.5, 3]) * min(s, 2)), m + 9 * s]
        pieces = np.unique(np.clip(pieces, m - 9 * s, m + 9 * s))
        total = sum(
            quad(lambda t: factor(t) * np.exp(joint(t, m, s) - height), a, b, epsabs=0, epsrel=1e-11, limit=200)[0]
            for a, b in zip(pieces, pieces[1:], strict=False)
        )
        return total * np.exp(height), total, height

    def joint(t, m, s):
        normal = -0.5 * ((t - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
        return k * log_expit(t) + (n - k) * log_expit(-t) + normal

    _, mass, height = integral(mean, width, lambda t: 1.0)
    # The definition of the derivatives of a Gaussian, not the integration by parts that the code uses.
    by_mean = integral(mean, width, lambda t: (t - mean) / width**2)[1] / mass
    by_log_width = integral(mean, width, lambda t: ((t - mean) / width) ** 2 - 1.0)[1] / mass
    found = [float(v[0]) for v in log_marginal(np.array([k * 1.0]), np.array([n * 1.0]), np.array([mean * 1.0]), width)]
    # 1e-5 is the quadrature's stated accuracy; derivatives reach hundreds, so they are held to it relatively.
    assert found[0] == pytest.approx(math.log(mass) + height, abs=1e-5)
    assert found[1] == pytest.approx(by_mean, rel=1e-4, abs=1e-5)
    assert found[2] == pytest.approx(by_log_width, rel=1e-4, abs=1e-4)


def test_no_draws_give_the_prior_and_many_draws_the_pass_rate():
    mean, none = np.array([-1.0, 2.0]), np.zeros(2)
    prior = log_z_posterior(none, none, mean, 0.5, beta=5.0)
    t = np.random.default_rng(0).normal(mean, 0.5, (200_000, 2))
    # Monte Carlo error of the mean: at most 0.5 nats over sqrt(2e5), times four.
    assert prior.log_z == pytest.approx(log_z_from_q(expit(t), 5.0, RANGE).mean(axis=0), abs=5e-3)
    many = log_z_posterior(np.array([3e7, 1e3]), np.full(2, 1e8), mean, 0.5, beta=5.0)
    # A prior of width 0.5 moves logit q by (t - m) / (0.25 n q (1 - q)): at most 0.04 at 1e3 hits.
    assert many.log_z == pytest.approx(log_z_from_q(np.array([0.3, 1e-5]), 5.0, RANGE), abs=1e-4)


def test_the_estimate_is_the_mean_of_log_z_and_not_log_z_at_the_mean():
    k, n = np.array([0.0]), np.array([8.0])
    posterior = log_z_posterior(k, n, np.array([-3.0]), 2.0, beta=15.0)
    t = np.linspace(-25, 15, 400_001)
    p = np.exp(8 * log_expit(-t) - 0.5 * ((t + 3.0) / 2.0) ** 2)
    p /= p.sum()
    assert posterior.log_z[0] == pytest.approx(p @ log_z_from_q(expit(t), 15.0, RANGE), abs=1e-5)
    assert posterior.log_z[0] < log_z_from_q(p @ expit(t), 15.0, RANGE) - 0.5
    # The stored q reproduces the stored log Z, as an anchor requires.
    assert log_z_from_q(posterior.q, 15.0, RANGE) == pytest.approx(posterior.log_z, abs=1e-9)
    inside = np.cumsum(p)
    ends = [log_z_from_q(expit(t[np.searchsorted(inside, e)]), 15.0, RANGE) for e in (0.05, 0.95)]
    # Linear interpolation between 64 nodes moves a quantile by at most a hundredth of the interval.
    assert [posterior.interval_low[0], posterior.interval_high[0]] == pytest.approx(ends, abs=0.05)


def test_no_inverse_temperature_overflows_and_the_range_shifts_log_z():
    k, n, mean = np.array([2.0]), np.array([8.0]), np.array([-1.0])
    assert 790.0 < log_z_posterior(k, n, mean, 1.0, beta=800.0).log_z[0] < 800.0
    plain = log_z_posterior(k, n, mean, 1.0, beta=6.0)
    shifted = log_z_posterior(k, n, mean, 1.0, beta=3.0, reward_range=(-1.0, 1.0))
    assert shifted.log_z == pytest.approx(plain.log_z - 3.0, abs=1e-9)
    assert shifted.q == pytest.approx(plain.q, rel=1e-9)


@pytest.mark.parametrize("beta", [5.0, 15.0])
def test_features_that_carry_difficulty_cut_the_error_by_a_quarter(carried, beta):
    regressor, features, logit, k = carried
    truth = log_z_from_q(expit(logit[:PROMPTS]), beta, RANGE)
    n = np.full(PROMPTS, 8.0)
    posterior = regressor.posterior(k[:PROMPTS], n, features[:PROMPTS], beta=beta)
    jeffreys = log_z_from_q((k[:PROMPTS] + 0.5) / 9.0, beta, RANGE)
    assert rmse(posterior.log_z, truth) <= 0.75 * rmse(jeffreys, truth)
    covered = np.mean((posterior.interval_low <= truth) & (truth <= posterior.interval_high))
    # Three Monte Carlo standard errors of 500 prompts at 90% are 0.04.
    assert covered == pytest.approx(0.9, abs=0.04)
    unseen = log_z_from_q(expit(logit[PROMPTS:]), beta, RANGE)
    predicted = regressor.predict(features[PROMPTS:], beta=beta).log_z
    assert rmse(predicted, unseen) <= 0.6 * rmse(truth.mean(), unseen)


@pytest.mark.parametrize("beta", [5.0, 15.0])
def test_features_that_carry_nothing_leave_empirical_bayes(nothing, beta):
    regressor, features, logit, k = nothing
    truth = log_z_from_q(expit(logit[:PROMPTS]), beta, RANGE)
    n = np.full(PROMPTS, 8.0)
    posterior = regressor.posterior(k[:PROMPTS], n, features[:PROMPTS], beta=beta)
    pooled = log_z_posterior(
        k[:PROMPTS], n, np.full(PROMPTS, regressor.constant_mean), regressor.constant_width, beta=beta
    )
    jeffreys = log_z_from_q((k[:PROMPTS] + 0.5) / 9.0, beta, RANGE)
    assert rmse(posterior.log_z, truth) <= 0.9 * rmse(jeffreys, truth)
    assert rmse(posterior.log_z, truth) <= 1.02 * rmse(pooled.log_z, truth)


def test_the_fit_finds_the_simulated_law():
    found = []
    for seed in range(4):
        features, logit, k = simulate(seed)
        regressor = fit(k[:PROMPTS], np.full(PROMPTS, 8.0), features[:PROMPTS])
        unseen = np.std(regressor.mean_logit(features[PROMPTS:]) - logit[PROMPTS:])
        found.append([regressor.intercept, np.linalg.norm(regressor.weights), regressor.width, unseen])
    # Intercept -2.5, weights of length 2, width 1; 1.04 is that width with the errors of 17 coefficients. One fit's
    # standard deviations are .11, .07, .09 and .03: three standard errors of the mean of four.
    truth, error = np.array([-2.5, 2.0, 1.0, 1.04]), np.array([0.11, 0.07, 0.09, 0.03]) / 2
    assert (np.abs(np.mean(found, axis=0) - truth) < 3 * error).all()


def test_what_left_out_prompts_correct_is_most_likely_under_its_priors():
    features, logit, k = simulate(7)
    n, mean = np.full(60, 8.0), 0.6 * logit[:60] - 2.0  # too low, too flat
    found = np.array(_recalibrate(k[:60], n, mean))

    def loss(shift, slope, log_width):
        moved = mean + shift + (slope - 1.0) * (mean - mean.mean())
        prior = (shift / 10.0) ** 2 + ((slope - 1.0) / 0.25) ** 2 + (log_width / 1.5) ** 2
        return 0.5 * prior - log_marginal(k[:60], n, moved, np.exp(log_width))[0].sum()

    at = (found[0], found[1], np.log(found[2]))
    # Half a loss unit is one standard error; the optimiser stops far below, and no step from its end lowers the loss.
    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 0.02:
        assert loss(*(at + step)) > loss(*at)
    assert found[0] > 0.3 and found[1] > 1.1


def test_the_units_of_the_features_do_not_matter():
    features, _, k = simulate(1)
    features, k, n = features[:100], k[:100], np.full(100, 8.0)
    a, b = np.random.default_rng(2).uniform(0.1, 10.0, (2, FEATURES))
    plain, moved = fit(k, n, features), fit(k, n, a * features + b)
    # The optimiser stops at relative changes of 1e-9 in the loss, which allows 1e-4 in the argument.
    assert moved.mean_logit(a * features + b) == pytest.approx(plain.mean_logit(features), abs=1e-3)


def test_more_features_than_prompts_and_constant_features_are_fitted():
    rng = np.random.default_rng(3)
    features = np.concatenate([rng.normal(size=(120, 300)), np.full((120, 2), 7.0)], axis=1)
    logit = 2.0 * features[:, 0] + 2.0 * features[:, 1]
    k = rng.binomial(16, expit(logit)).astype(float)
    regressor = fit(k, np.full(120, 16.0), features)
    assert regressor.weights[-2:] == pytest.approx(0.0, abs=1e-9)
    assert np.corrcoef(regressor.mean_logit(features), logit)[0, 1] > 0.7


def test_a_feature_that_varies_by_rounding_alone_is_left_near_zero():
    features, _, k = simulate(5)
    noise = np.random.default_rng(6).choice([0.0, 1e-7], (100, 1))  # a large constant in float32, as float64
    regressor = fit(k[:100], np.full(100, 8.0), np.concatenate([features[:100], 1e4 + noise], axis=1))
    assert regressor.scale[-1] == 1.0
    assert abs(regressor.weights[-1] * 1e-7) < 1e-6


@pytest.mark.parametrize("hits", [0.0, 8.0])
def test_prompts_that_all_fail_or_all_pass_leave_a_finite_fit(hits):
    features, _, _ = simulate(4)
    k, n = np.full(30, hits), np.full(30, 8.0)
    estimate = fit(k, n, features[:30]).posterior(k, n, features[:30], beta=15.0)
    assert np.isfinite(estimate.log_z).all()
    assert np.all(estimate.log_z < 12.0) if hits == 0 else np.all(estimate.log_z > 14.5)


def test_pass_rates_and_mixtures_of_reference_draws_give_back_plain_counts():
    arrays = sample(np.random.default_rng(5), 40, 24, 0)
    hits = arrays["rewards"].reshape(40, 24).sum(axis=1)
    assert hits.min() == 0
    for method in ("pass_rate", "mixture"):
        k, n = pseudo_counts(estimate_log_partition_batch(**arrays, beta=15.0, method=method))
        assert k == pytest.approx(hits, abs=1e-9)
        assert n == pytest.approx(24.0, abs=1e-9)


def test_light_hits_count_as_many_draws_and_no_hits_as_the_effective_draws():
    arrays = sample(np.random.default_rng(6), 400, 16, 48, PASSES)
    batch = estimate_log_partition_batch(**arrays, beta=15.0)
    k, n = pseudo_counts(batch)
    some = k > 0
    assert (k + 0.5) / (n + 1) == pytest.approx(batch.q, rel=1e-12)
    # Hits weigh about 0.1 to 0.4 here, so each stands for more than one draw of the reference.
    assert np.median(n[some]) > 2 * 64
    assert n[~some] == pytest.approx(batch.ess[~some], rel=1e-9)


def test_pseudo_counts_of_mixtures_feed_the_regressor_as_well_as_their_estimates():
    rng = np.random.default_rng(7)
    prompts, features = 300, rng.normal(size=(300, 4))
    log_p = np.log(0.05) + 0.8 * features[:, 0]
    # Success i.i.d. with probability p; the proposal succeeds twice as often as the reference.
    from_reference = np.tile(np.arange(16) < 4, prompts)
    p = np.minimum(np.exp(log_p), 0.45).repeat(16)
    reward = (rng.random(prompts * 16) < np.where(from_reference, p, 2 * p)).astype(float)
    arrays = {
        "rewards": reward,
        "prompt_index": np.arange(prompts).repeat(16),
        "log_ref": np.where(reward == 1, np.log(p), np.log1p(-p)),
        "log_proposal": np.where(reward == 1, np.log(2 * p), np.log1p(-2 * p)),
        "from_reference": from_reference,
    }
    batch = estimate_log_partition_batch(**arrays, beta=15.0)
    truth = log_z_from_q(p[::16], 15.0, RANGE)
    k, n = pseudo_counts(batch)
    posterior = fit(k, n, features).posterior(k, n, features, beta=15.0)
    assert rmse(posterior.log_z, truth) < 0.75 * rmse(batch.log_z, truth)


def test_the_report_tells_features_that_carry_difficulty_from_those_that_do_not(carried, nothing):
    n = np.full(PROMPTS, 8.0)
    good, bad = (
        report_regressor(regressor, k[PROMPTS:], n, features[PROMPTS:], beta=5.0)
        for regressor, features, _, k in (carried, nothing)
    )
    # Variance 4 of 5 in logit q comes from the features.
    assert good.r2_logit_q == pytest.approx(0.8, abs=0.08)
    assert good.nll < good.nll_constant - 0.1
    assert bad.r2_logit_q == pytest.approx(0.0, abs=0.05)
    assert bad.nll == pytest.approx(bad.nll_constant, abs=0.02)
    for report in (good, bad):
        assert report.coverage == pytest.approx(0.9, abs=0.04)
        assert report.prompts == PROMPTS


def test_the_reported_error_against_well_measured_prompts_is_that_of_the_prediction(carried):
    regressor, features, logit, _ = carried
    n = np.full(PROMPTS, 1e6)
    report = report_regressor(regressor, n * expit(logit[PROMPTS:]), n, features[PROMPTS:], beta=5.0)
    truth = log_z_from_q(expit(logit[PROMPTS:]), 5.0, RANGE)
    predicted = regressor.predict(features[PROMPTS:], beta=5.0).log_z
    # With a million draws the Jeffreys estimate is within 1e-4 of the truth.
    assert report.rmse == pytest.approx(rmse(predicted, truth), abs=1e-3)
    assert report.rmse < 0.6 * report.rmse_constant
    assert report.coverage == pytest.approx(0.9, abs=0.04)


def test_the_reported_coverage_falls_when_the_width_is_too_small(carried):
    regressor, features, _, k = carried
    narrow = Regressor(**{**vars(regressor), "width": 0.2})
    report = report_regressor(narrow, k[PROMPTS:], np.full(PROMPTS, 8.0), features[PROMPTS:], beta=5.0)
    assert report.coverage < 0.85


def test_the_coverage_of_pseudo_counts_is_that_of_their_incomplete_beta_functions():
    # Beta(misses, hits + 1) at the failure probability, averaged over the prior of logit q by adaptive integration.
    for hits, misses, mean, width in ((0.6, 0.3, 0.5, 1.0), (0.0, 0.5, 2.0, 0.7), (2.4, 1.7, -1.0, 1.5)):

        def over_prior(f, mean=mean, width=width):
            law = scipy.stats.norm(mean, width)
            return quad(lambda t: law.pdf(t) * f(expit(-t)), mean - 9 * width, mean + 9 * width, limit=200)[0]

        below = over_prior(scipy.stats.beta(misses + 1, hits).cdf) if hits else 0.0
        up_to = over_prior(scipy.stats.beta(misses, hits + 1).cdf)
        inside = max(min(up_to, 0.95) - max(below, 0.05), 0.0) / (up_to - below)
        found = _coverage(np.array([hits]), np.array([hits + misses]), np.array([mean]), width, 0.9)
        # The stage averages over equal shares of the prior instead.
        assert found == pytest.approx(inside, abs=2e-3)


def test_a_saved_regressor_comes_back_whole(carried, tmp_path):
    regressor, features, _, k = carried
    regressor.save(tmp_path / "regressor.npz")
    loaded = Regressor.load(tmp_path / "regressor.npz", features_fingerprint="simulated")
    n = np.full(PROMPTS, 8.0)
    one, other = (r.posterior(k[:PROMPTS], n, features[:PROMPTS], beta=5.0) for r in (regressor, loaded))
    assert np.array_equal(one.log_z, other.log_z)
    assert [p.name for p in tmp_path.iterdir()] == ["regressor.npz"]


def test_a_regressor_for_other_features_is_refused(carried, tmp_path):
    carried[0].save(tmp_path / "regressor.npz")
    with pytest.raises(DisaError, match="features_fingerprint is simulated, the features given have other"):
        Regressor.load(tmp_path / "regressor.npz", features_fingerprint="other")


def test_a_missing_or_broken_file_is_refused_by_name(tmp_path):
    with pytest.raises(DisaError, match="nowhere.npz: file not found"):
        Regressor.load(tmp_path / "nowhere.npz", features_fingerprint="simulated")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DisaError, match="broken.npz: not a saved regressor"):
        Regressor.load(tmp_path / "broken.npz", features_fingerprint="simulated")


def test_bad_arguments_are_refused_with_the_prompt(carried):
    regressor, features, _, k = carried
    k, n, features = k[:30], np.full(30, 8.0), features[:30]
    with pytest.raises(DisaError, match="counts, prompt 3: k = 9.0 and n = 8.0"):
        fit(np.where(np.arange(30) == 3, 9.0, k), n, features)
    with pytest.raises(DisaError, match="19 prompts, expected at least 20"):
        fit(k[:19], n[:19], features[:19])
    with pytest.raises(DisaError, match="features, prompt 2: features are not finite"):
        fit(k, n, np.where(np.arange(30)[:, None] == 2, np.nan, features))
    with pytest.raises(DisaError, match=r"shape \(30, 15\), expected \(prompts, 16\)"):
        regressor.predict(features[:, :15], beta=5.0)
    with pytest.raises(DisaError, match="needs prompts that all have draws"):
        report_regressor(regressor, k * 0, n * 0, features, beta=5.0)


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def test_features_are_the_mean_hidden_state_however_prompts_are_batched(reference):
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]
    found = prompt_features(reference, prompts, tokens_per_batch=7)
    for ids, row in zip(prompts, found, strict=True):
        states = reference(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        # float32 rounding of hidden states of size 1.
        assert row == pytest.approx(states[0].double().mean(dim=0).numpy(), abs=1e-5)
    assert found == pytest.approx(prompt_features(reference, prompts), abs=1e-5)


def test_a_trainable_reference_and_an_empty_prompt_are_refused(reference):
    with pytest.raises(DisaError, match="prompt 1: has no token"):
        prompt_features(reference, [[1], []])
    trainable = LlamaForCausalLM(reference.config).eval()
    with pytest.raises(DisaError, match=r"parameter \S+ is trainable"):
        prompt_features(trainable, [[1]])


def test_the_features_fingerprint_follows_the_reference_but_not_beta():
    def fingerprint(**changes):
        values = {
            "reference": "a",
            "tokenizer": "b",
            "chat_template": "none",
            "temperature": 1.0,
            "max_completion_length": 8,
            "stop_token_ids": (2,),
            "reward": "r",
            "inverse_temperature": 5.0,
            "task": "t",
        }
        return features_fingerprint(Fingerprint(**values | changes))

    assert fingerprint(inverse_temperature=15.0) == fingerprint()
    for change in ({"reference": "z"}, {"chat_template": "z"}, {"temperature": 0.7}, {"reward": "z"}):
        assert fingerprint(**change) != fingerprint()
