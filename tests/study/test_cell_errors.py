"""The error of a cell against closed forms, exact sums, and the enumerable model."""

import math

import numpy as np
import pytest
from scipy.stats import beta as beta_distribution
from scipy.stats import binom

from disa.errors import DisaError
from disa.evaluation.metrics import MetricValue
from disa.partition.config import PartitionConfig
from disa.study.cell_errors import (
    HeldoutDraws,
    TrueLogZ,
    cell_error,
    error_parts,
    in_block,
    root_mean_square,
    truth_from_reference,
    whole_blocks,
)
from disa.testing import (
    PROPOSALS,
    Space,
    binary_reward,
    expectation,
    graded_reward,
    log_partition,
    make_proposal,
    random_model,
)


def pool_of(rewards, log_ref=None, log_proposal=None, reference_draws=None):
    """A pool from arrays of shape (prompts, draws), the reference's draws first."""
    prompts, draws = rewards.shape
    reference_draws = draws if reference_draws is None else reference_draws
    index = np.arange(draws)
    columns = {
        "rewards": rewards.ravel(),
        "prompt_index": np.repeat(np.arange(prompts), draws),
        "n_prompts": prompts,
        "log_ref": np.zeros(rewards.size) if log_ref is None else log_ref.ravel(),
        "log_proposal": np.zeros(rewards.size) if log_proposal is None else log_proposal.ravel(),
        "from_reference": np.tile(index < reference_draws, prompts),
        "lengths": np.full(rewards.size, 4.0),
    }
    return HeldoutDraws(columns, np.tile(np.where(index < reference_draws, index, index - reference_draws), prompts))


def test_bias_and_variance_add_up_to_the_mean_squared_error():
    rng = np.random.default_rng(0)
    estimates, truth = rng.normal(size=(5, 7)), TrueLogZ(rng.normal(size=7), rng.uniform(0, 0.1, 7))
    found = error_parts(estimates, truth)
    expected = ((estimates - truth.log_z) ** 2).mean(axis=0) - truth.variance
    # Float rounding of sums of a few numbers near 1.
    np.testing.assert_allclose(found.mse, expected, atol=1e-14)
    np.testing.assert_allclose(found.bias_squared + found.variance, expected, atol=1e-14)


def test_bias_squared_and_variance_are_unbiased_with_four_replicates_and_a_noisy_truth():
    rng = np.random.default_rng(1)
    prompts, bias, spread, noise = 40_000, 0.3, 0.5, 0.2
    truth = TrueLogZ(rng.normal(0.0, noise, prompts), np.full(prompts, noise**2))
    found = error_parts(bias + rng.normal(0.0, spread, (4, prompts)), truth)
    # Five standard errors of a mean over prompts; leaving out either correction would shift bias^2 by over 0.04, that
    # is more than 20 of them.
    for values, expected in ((found.bias, bias), (found.bias_squared, bias**2), (found.variance, spread**2)):
        assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(prompts)
    assert 0.04 > 20 * found.bias_squared.std() / math.sqrt(prompts)


def test_blocks_share_nothing_and_hold_the_same_draws_of_each_source_for_every_prompt():
    rewards = np.arange(3 * 21, dtype=np.float64).reshape(3, 21)
    counts = {"reference": 2, "proposal": 5}
    pool = pool_of(rewards, reference_draws=6)
    assert whole_blocks({"reference": 6, "proposal": 15}, counts) == 3
    assert whole_blocks({"reference": 6, "proposal": 14}, counts) == 2
    assert whole_blocks({"reference": 24, "proposal": 0}, {"reference": 7, "proposal": 0}) == 3
    blocks = [pool.block(number, counts) for number in range(3)]
    for block in blocks:
        assert block["n_prompts"] == 3
        assert np.bincount(block["prompt_index"], block["from_reference"]).tolist() == [2, 2, 2]
        assert np.bincount(block["prompt_index"]).tolist() == [7, 7, 7]
    drawn = np.concatenate([block["rewards"] for block in blocks])
    assert sorted(drawn) == rewards.ravel().tolist()


def test_a_source_without_draws_is_in_no_block():
    assert not in_block(0, False, 0, {"reference": 4, "proposal": 0})


@pytest.mark.parametrize("reward_range", [(0.0, 1.0), (-1.0, 2.0)])
def test_the_truth_is_off_the_exact_log_z_by_as_much_as_it_says(reward_range):
    # 400 prompts on the enumerable model with graded rewards, each with its own exact log Z.
    rng, draws, beta = np.random.default_rng(2), 500, 1.5
    reference = random_model(Space(4, 3), 400, rng)
    scaled = graded_reward(reference, np.full(400, 0.2), rng)
    rewards = reward_range[0] + (reward_range[1] - reward_range[0]) * scaled
    exact = log_partition(reference.log_probs, rewards, beta)
    drawn = reference.sample(rng, draws)
    truth = truth_from_reference(pool_of(np.take_along_axis(rewards, drawn, 1)).columns, beta, reward_range)
    z = (truth.log_z - exact) / np.sqrt(truth.variance)
    # Four standard errors of a mean and of a mean square of 400 standard normal numbers: 0.2 and 0.28. The half
    # observation of either kind and the delta method are off by less at 500 draws.
    assert abs(z.mean()) < 0.2
    assert abs((z**2).mean() - 1.0) < 0.28


def test_for_rewards_of_0_and_1_the_truths_variance_is_the_jeffreys_posteriors():
    hits, n, beta = np.array([0, 3, 40]), 40, 2.0
    rewards = (np.arange(n) < hits[:, None]).astype(np.float64)
    truth = truth_from_reference(pool_of(rewards).columns, beta, (0.0, 1.0))
    posterior = beta_distribution(hits + 0.5, n - hits + 0.5)
    z = 1.0 + math.expm1(beta) * posterior.mean()
    # Float rounding.
    np.testing.assert_allclose(truth.log_z, np.log(z), rtol=1e-12)
    np.testing.assert_allclose(truth.variance, (math.expm1(beta) / z) ** 2 * posterior.var(), rtol=1e-12)


def test_a_prompt_without_a_verdict_has_no_truth():
    columns = pool_of(np.ones((2, 3))).columns | {"n_prompts": 3}
    with pytest.raises(DisaError, match="no reference draw with a verdict"):
        truth_from_reference(columns, 1.0, (0.0, 1.0))


def test_error_and_coverage_of_a_cell_are_those_of_the_binomial_distribution():
    # Reference draws alone, rewards of 0 and 1: k hits of n are binomial, and everything is a sum over k.
    p, n, b, level, prompts, blocks = 0.15, 8, 3.0, 0.8, 400, 20
    rng = np.random.default_rng(3)
    pool = pool_of((rng.random((prompts, n * blocks)) < p).astype(np.float64))
    log_z = np.full(prompts, math.log1p(math.expm1(b) * p))
    config = PartitionConfig(method="pass_rate", interval="clopper_pearson", level=level)
    truth, counts = TrueLogZ(log_z, np.zeros(prompts)), {"reference": n, "proposal": 0}
    found = cell_error(pool, counts, blocks, truth, config, b, (0.0, 1.0))

    k = np.arange(n + 1)
    chance, log_zs = binom.pmf(k, n, p), np.log1p(math.expm1(b) * (k + 0.5) / (n + 1))
    mean = chance @ log_zs
    low = np.where(k > 0, beta_distribution.ppf((1 - level) / 2, k, n - k + 1), 0.0)
    high = np.where(k < n, beta_distribution.ppf((1 + level) / 2, k + 1, n - k), 1.0)
    expected = {
        "bias": mean - log_z[0],
        "bias_squared": (mean - log_z[0]) ** 2,
        "variance": chance @ log_zs**2 - mean**2,
        "mse": chance @ (log_zs - log_z[0]) ** 2,
        "coverage": chance @ ((low <= p) & (p <= high)),
    }
    expected["rmse"] = math.sqrt(expected["mse"])
    for name, value in expected.items():
        # Four standard errors over prompts, as the cell itself states them.
        assert abs(found[name]["value"] - value) < 4 * found[name]["se"], name
        assert found[name]["se"] < 0.1 * value + 0.01, name
    assert (found["blocks"], found["prompts"], found["truth_se"]) == (blocks, prompts, 0.0)
    assert found["ess"]["value"] == n
    # Eight draws at a success rate of 0.15 hold five hits in 0.2% of blocks.
    assert found["flags"]["few_hits"] == pytest.approx(1 - binom.sf(4, n, p), abs=0.005)
    assert "proposal_reward" not in found and "divergence" not in found


def test_a_proposal_that_follows_the_values_lowers_the_error_of_the_default_estimator():
    rng, prompts, blocks, n = np.random.default_rng(4), 40, 16, 16
    reference = random_model(Space(4, 4), prompts, rng)
    rewards = binary_reward(reference, np.full(prompts, 0.05), rng)
    strong = make_proposal(reference, rewards, PROPOSALS["strong"], rng)
    truth = TrueLogZ(log_partition(reference.log_probs, rewards, 4.0), np.zeros(prompts))

    def measured(proposal, share):
        counts = {"reference": round(share * n), "proposal": n - round(share * n)}
        drawn = [m.sample(rng, blocks * c) for m, c in zip((reference, proposal), counts.values(), strict=True) if c]
        drawn = np.concatenate(drawn, axis=1)
        of = [np.take_along_axis(values, drawn, 1) for values in (rewards, reference.log_probs, proposal.log_probs)]
        pool = pool_of(*of, reference_draws=blocks * counts["reference"])
        return cell_error(pool, counts, blocks, truth, PartitionConfig(), 4.0, (0.0, 1.0))

    alone, guided = measured(reference, 1.0), measured(strong, 0.25)
    assert guided["rmse"]["value"] + 4 * guided["rmse"]["se"] < alone["rmse"]["value"] - 4 * alone["rmse"]["se"]
    reward = guided["proposal_reward"]
    assert abs(reward["value"] - expectation(strong.log_probs, rewards).mean()) < 4 * reward["se"]
    success = expectation(reference.log_probs, rewards)
    log_ratio = reference.log_probs - np.log(success)[:, None] - strong.log_probs
    exact = (expectation(reference.log_probs, rewards * log_ratio) / success).mean()
    # The three successes that a prompt has on average make the estimate of D noisy and, in log p, biased.
    assert abs(guided["divergence"]["value"] - exact) < 0.4
    assert guided["hits_ess"]["value"] > alone["hits_ess"]["value"]


def test_the_root_of_a_mean_square_has_the_delta_methods_error_and_none_at_0():
    assert root_mean_square(MetricValue(4.0, 0.4, 9)) == MetricValue(2.0, 0.1, 9)
    assert root_mean_square(MetricValue(-0.1, 0.4, 9)).value == 0.0
    assert math.isnan(root_mean_square(MetricValue(-0.1, 0.4, 9)).se)
