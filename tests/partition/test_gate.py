import numpy as np
import pytest
from six_outcomes import GRADES, PASSES, PROPOSAL, REFERENCE, population

from disa.partition import estimate_log_partition_batch
from disa.partition.draws import collect_draws
from disa.partition.gate import divergence, gated

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
    return divergence(collect_draws(**arrays, reward_range=(0, 1)))


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


def test_own_successes_count_with_one_more_at_the_pooled_rate_per_token():
    arrays = prompts([(8, 1.0, 10), (4, 2.0, 30), (0, 0.0, 50)])
    p = (np.array([8, 4]) + 0.5) / 17
    sums = np.array([8 * 1.0, 4 * 2.0]) - np.array([8, 4]) * np.log(p)
    rate = sums.sum() / (8 * 10 + 4 * 30)
    expected = [(sums[0] + 10 * rate) / 9, (sums[1] + 30 * rate) / 5, 50 * rate]
    np.testing.assert_allclose(d_of(arrays), expected, rtol=1e-12)


def test_a_prompt_without_reference_success_is_judged_by_the_length_of_its_draws():
    # The others lose about 0.02 nat a token; at 20 tokens 48 draws suffice, at 2000 they cannot.
    seen = [(12, 0.02 * 100, 100)] * 5
    marks = gated(collect_draws(**prompts([*seen, (0, 0.0, 20), (0, 0.0, 2000)]), reward_range=(0, 1)))
    assert marks.tolist() == [False] * 6 + [True]


def test_without_any_reference_success_overlap_is_unknown_and_the_gate_stays_open():
    for lengths in (True, False):
        arrays = prompts([(0, 30.0, 2000), (0, 30.0, 2000)], lengths)
        assert np.isnan(d_of(arrays)).all()
        assert estimate_log_partition_batch(**arrays).method == ("mixture", "mixture")


def test_without_lengths_each_prompt_is_judged_alone():
    arrays = prompts([(8, 9.0, 10), (8, -0.5, 10)], lengths=False)
    p = 8.5 / 17
    np.testing.assert_allclose(d_of(arrays), [9.0 - np.log(p), -0.5 - np.log(p)], rtol=1e-12)


def test_gate_closes_where_d_plus_one_exceeds_the_log_number_of_proposal_draws():
    p = 8.5 / 17
    limit = np.log(48) - 1 + np.log(p)
    arrays = prompts([(8, limit - 1e-6, 10), (8, limit + 1e-6, 10)], lengths=False)
    assert gated(collect_draws(**arrays, reward_range=(0, 1))).tolist() == [False, True]


def test_gated_prompts_use_the_pass_rate_of_their_reference_draws_and_say_so():
    batch = estimate_log_partition_batch(**prompts([(3, 20.0, 2000), (8, 0.0, 2000)], lengths=False))
    assert batch.method == ("pass_rate", "mixture")
    assert "gated" in batch.flags[0] and "gated" not in batch.flags[1]
    assert batch.q[0] == pytest.approx(3.5 / 17)
    assert (batch.ess[0], batch.hits_ess[0], batch.mean_weight[0]) == (16, 3, 1)
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
    assert gated(collect_draws(**arrays, reward_range=(0, 1)))[0]
