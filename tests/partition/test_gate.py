import numpy as np
import pytest
import scipy.stats
from scipy.optimize import brentq
from six_outcomes import GRADES, PASSES, PROPOSAL, REFERENCE, population

from disa.partition import estimate_log_partition_batch
from disa.partition.draws import collect_draws
from disa.partition.gate import gated_prompts, proposal_divergence

BETA = 15.0


def prompts(specifications, lengths=True, n_proposal=48):
    """Prompts of 16 reference draws with some successes, all with the given log(pi_ref / mu) and length."""
    rewards, prompt, ratio, length, source = [], [], [], [], []
    for i, (hits, log_ratio, tokens) in enumerate(specifications):
        n = 16 + n_proposal
        rewards += [1.0] * hits + [0.0] * (16 - hits) + [1.0] * n_proposal
        prompt += [i] * n
        ratio += [log_ratio] * n
        length += [tokens] * n
        source += [True] * 16 + [False] * n_proposal
    ratio = np.array(ratio)
    return {
        "rewards": np.array(rewards),
        "prompt_index": np.array(prompt),
        "log_ref": np.full(len(ratio), -200.0),
        "log_proposal": -200.0 - ratio,
        "from_reference": np.array(source),
        "beta": BETA,
    } | ({"lengths": np.array(length, dtype=float)} if lengths else {})


def d_of(arrays):
    return proposal_divergence(collect_draws(**arrays, reward_range=(0, 1)))[0]


@pytest.mark.parametrize("rewards", [PASSES, GRADES], ids=["binary", "graded"])
def test_divergence_is_the_kl_from_the_rewarded_reference_to_the_proposal(rewards):
    beta = 3.0
    arrays = population(100, rewards) | {"beta": beta}
    s = np.expm1(beta * rewards) / np.expm1(beta)
    p = REFERENCE @ s
    target = REFERENCE * s / p
    hit = target > 0
    kl = np.sum(target[hit] * np.log(target[hit] / PROPOSAL[hit]))
    # The draws have exactly the expected numbers; only the Jeffreys half hit separates p-hat from p.
    jeffreys = np.log(p) - np.log((100 * p + 0.5) / 101)
    assert d_of(arrays)[0] == pytest.approx(kl + jeffreys, abs=1e-9)


def test_own_successes_and_the_pooled_rate_per_token_are_weighed_by_their_precision():
    hits, tokens = np.array([8, 4, 0]), np.array([10, 30, 50])
    arrays = prompts([(8, 1.0, 10), (4, 2.0, 30), (0, 0.0, 50)])
    own = np.array([1.0, 2.0]) - np.log((hits[:2] + 0.5) / 17)
    rate = (hits[:2] @ own) / (8 * 10 + 4 * 30)
    expected, variance = rate * tokens, 2 * rate * tokens
    # Method of moments for the spread of rates: sum S (own - kappa L)^2 = sum (2 kappa L + S tau^2 L^2).
    tau2 = (hits[:2] @ (own - expected[:2]) ** 2 - variance[:2].sum()) / (hits[:2] @ tokens[:2] ** 2)
    tau2 = max(tau2, 0.0)
    precision = hits / variance, 1 / (tau2 * tokens**2 + variance / 12)
    mean = (precision[0] * np.append(own, 0) + precision[1] * expected) / (precision[0] + precision[1])
    d, error = proposal_divergence(collect_draws(**arrays, reward_range=(0, 1)))
    np.testing.assert_allclose(d, mean, rtol=1e-12)
    np.testing.assert_allclose(error, (precision[0] + precision[1]) ** -0.5, rtol=1e-12)
    assert d[2] == pytest.approx(50 * rate)


def test_prompts_that_differ_leave_one_without_successes_open_and_alike_ones_close_it():
    # The same mean of 8 nats at 100 tokens; where half the prompts have 1 and half 15, nobody knows a new one's.
    for ratios, closed in (([8.0] * 10, True), ([1.0, 15.0] * 5, False)):
        arrays = prompts([*((8, ratio, 100) for ratio in ratios), (0, 0.0, 100)])
        assert gated_prompts(collect_draws(**arrays, reward_range=(0, 1)))[-1] == closed


def test_a_prompt_without_reference_success_is_judged_by_the_length_of_its_draws():
    # The others lose about 0.02 nat a token; at 20 tokens 48 draws suffice, at 2000 they cannot.
    seen = [(12, 0.02 * 100, 100)] * 5
    marks = gated_prompts(collect_draws(**prompts([*seen, (0, 0.0, 20), (0, 0.0, 2000)]), reward_range=(0, 1)))
    assert marks.tolist() == [False] * 6 + [True]


def test_without_any_reference_success_overlap_is_unknown_and_the_gate_stays_open():
    for lengths in (True, False):
        arrays = prompts([(0, 30.0, 2000), (0, 30.0, 2000)], lengths)
        assert np.isnan(d_of(arrays)).all()
        assert all("gated" not in flags for flags in estimate_log_partition_batch(**arrays).flags)


def test_without_lengths_each_prompt_is_judged_alone():
    arrays = prompts([(8, 9.0, 10), (8, -0.5, 10)], lengths=False)
    p = 8.5 / 17
    np.testing.assert_allclose(d_of(arrays), [9.0 - np.log(p), -0.5 - np.log(p)], rtol=1e-12)


def test_the_standard_error_is_that_of_normal_log_ratios():
    # A normal log ratio with mean D has variance 2 D: E[mu / pi_ref] = 1. Measured on 4000 prompts of 8 successes.
    d, hits = 4.0, 8
    ratio = np.random.default_rng(0).normal(d, np.sqrt(2 * d), (4000, hits))
    arrays = prompts([(hits, 0.0, 10)] * 4000, lengths=False, n_proposal=1)
    arrays["log_proposal"].reshape(4000, 17)[:, :hits] = -200.0 - ratio
    found, error = proposal_divergence(collect_draws(**arrays, reward_range=(0, 1)))
    # A spread measured on 4000 prompts is exact to 1.1%; log p is the same for all and adds to D, so to the error.
    assert np.std(found) == pytest.approx(np.sqrt(2 * d / hits), rel=0.05)
    assert np.median(error) == pytest.approx(np.sqrt(2 * (d - np.log(8.5 / 17)) / hits), rel=0.05)


def gamma_chance(d, error, n_proposal):
    """Probability that D, of a gamma law with this mean and standard deviation, is at most log N - 1."""
    return scipy.stats.gamma.cdf(np.log(n_proposal) - 1, (d / error) ** 2, scale=error**2 / d)


def test_gate_closes_where_the_overlap_suffices_with_less_than_one_chance_in_twenty():
    d = brentq(lambda d: gamma_chance(d, np.sqrt(2 * d / 8), 48) - 0.05, 2, 20)
    limit = d + np.log(8.5 / 17)
    arrays = prompts([(8, limit - 1e-6, 10), (8, limit + 1e-6, 10)], lengths=False)
    assert gated_prompts(collect_draws(**arrays, reward_range=(0, 1))).tolist() == [False, True]


def test_the_gate_can_look_ahead_to_proposal_draws_that_are_still_to_come():
    draws = collect_draws(**prompts([(8, 5.0, 10)]), reward_range=(0, 1))
    d, error = (x[0] for x in proposal_divergence(draws))
    enough = brentq(lambda n: gamma_chance(d, error, n) - 0.05, 3, 1e6)
    assert (
        gated_prompts(draws)[0]
        and gated_prompts(draws, np.array([enough * 0.99]))[0]
        and not gated_prompts(draws, np.array([enough * 1.01]))[0]
    )


def test_a_large_and_uncertain_divergence_closes_the_gate():
    # D = 12 +- 8 against 12 draws, which suffice for D = 1.5: a normal law would give that a chance of 9%, most of it
    # on a negative D. Four prompts whose D differ that much leave the last one's, without hits, as uncertain.
    arrays = prompts([(8, r, 100) for r in (19.0, 3.5, 20.0, 3.0)] + [(0, 0.0, 100)], n_proposal=12)
    draws = collect_draws(**arrays, reward_range=(0, 1))
    d, error = (x[-1] for x in proposal_divergence(draws))
    assert d == pytest.approx(12.0, abs=0.1) and error == pytest.approx(8.0, abs=0.1)
    assert gated_prompts(draws)[-1]


def test_a_few_reference_draws_do_not_close_the_gate_by_chance():
    # Two reference draws per prompt, log ratios as a proposal with D = 0.5 has them; six proposal draws are enough.
    rng, closed = np.random.default_rng(0), []
    for _ in range(200):
        rewards = np.ones(8 * 12)
        ratio = rng.normal(0.5, 1.0, 8 * 12)
        arrays = {
            "rewards": rewards,
            "prompt_index": np.repeat(np.arange(12), 8),
            "log_ref": np.zeros(8 * 12),
            "log_proposal": -ratio,
            "from_reference": np.tile(np.arange(8) < 2, 12),
            "lengths": np.full(8 * 12, 8.0),
        }
        closed.append(gated_prompts(collect_draws(**arrays, beta=BETA, reward_range=(0, 1))).mean())
    # D - log p = 0.68 is just below log(6) - 1 = 0.79, so chance alone would close a third; the rule allows 5%.
    assert np.mean(closed) < 0.05


def test_gated_prompts_are_flagged_and_come_out_at_the_pass_rate_of_their_reference_draws():
    arrays = prompts([(3, 20.0, 2000), (8, 0.0, 2000)], lengths=False)
    proposal = ~arrays["from_reference"]
    arrays["log_proposal"] = np.where(proposal, -180.0, arrays["log_proposal"])
    batch = estimate_log_partition_batch(**arrays)
    assert batch.method == ("mixture", "mixture")
    assert "gated" in batch.flags[0] and "gated" not in batch.flags[1]
    # Both models' draws differ by 20 nats, so that the proposal's weigh e^-20, and reference draws 4 (1 - 3 e^-20).
    assert batch.q[0] == pytest.approx(3.5 / 17, rel=1e-6)
    assert (batch.ess[0], batch.hits_ess[0], batch.mean_weight[0]) == pytest.approx((16, 3, 1), rel=1e-6)
    assert (batch.n[0], batch.n_reference[0]) == (64, 16)


@pytest.mark.parametrize("method", ["anchored", "is", "tis", "psis", "snis"])
def test_methods_asked_for_by_name_are_not_gated(method):
    batch = estimate_log_partition_batch(**prompts([(3, 20.0, 2000)]), method=method)
    assert batch.method == (method,) and "gated" not in batch.flags[0]


@pytest.mark.parametrize("reference", [True, False])
def test_prompts_with_draws_of_one_kind_have_nothing_to_gate(reference):
    arrays = prompts([(8, 20.0, 10)])
    arrays["from_reference"] = np.full(64, reference)
    assert np.isnan(d_of(arrays)).all()


def test_a_success_that_the_proposal_cannot_write_closes_the_gate():
    arrays = prompts([(2, 0.0, 10)], lengths=False)
    arrays["log_proposal"][0] = -np.inf
    assert gated_prompts(collect_draws(**arrays, reward_range=(0, 1)))[0]
