import numpy as np
import pytest
from scipy.stats import chisquare

from disa.testing import (
    EnumerableModel,
    Space,
    binary_reward,
    expectation,
    graded_reward,
    kl,
    log_partition,
    random_model,
    target,
    total_variation,
)
from disa.testing.enumerable import from_completion_log_probs

ROUNDING = 1e-12  # sums of at most a few hundred thousand float64 terms that add to one
SPACE = Space(vocabulary=4, length_limit=4)
MODEL = random_model(SPACE, 3, np.random.default_rng(0))
SUCCESS = np.array([0.4, 0.06, 0.003])


def walk(model, prompt, completion_ids):
    """Log-probability token by token, the prefix found by the number of its own completion."""
    total, prefix = 0.0, []
    for token in completion_ids:
        row = model.logits[prompt, model.space.number([*prefix, 0])]
        total += row[token] - np.log(np.exp(row).sum())
        prefix.append(token)
    return total


def test_log_probs_equal_a_walk_along_the_tokens_for_every_completion_and_prompt():
    walked = [[walk(MODEL, p, SPACE.completion_ids(i)) for i in range(SPACE.completions)] for p in range(3)]
    np.testing.assert_allclose(MODEL.log_probs, walked, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("space", [Space(2, 1), Space(3, 5), Space()], ids=str)
def test_probabilities_of_all_completions_add_to_one(space):
    model = random_model(space, 2, np.random.default_rng(1))
    np.testing.assert_allclose(np.exp(model.log_probs).sum(axis=1), 1.0, rtol=0, atol=ROUNDING)


def test_value_of_a_prefix_is_the_mean_reward_of_the_completions_that_begin_with_it():
    reward = np.random.default_rng(2).random((3, SPACE.completions))
    values = MODEL.values(reward)
    probability = np.exp(MODEL.log_probs)
    for prefix in [[], [2], [3, 1], [1, 1, 2]]:
        begins = (SPACE.tokens[:, : len(prefix)] == prefix).all(axis=1)
        mean = (probability * reward)[:, begins].sum(axis=1) / probability[:, begins].sum(axis=1)
        np.testing.assert_allclose(values[:, SPACE.number([*prefix, 0])], mean, rtol=0, atol=ROUNDING)


def test_samples_have_the_exact_frequencies():
    draws = MODEL.sample(np.random.default_rng(3), 20_000)
    for row, log_p in zip(draws, MODEL.log_probs, strict=True):
        # The smallest probability here is far below 5 / 20,000: rare completions share one cell.
        expected = 20_000 * np.exp(log_p)
        common = expected >= 5
        counts = np.bincount(row, minlength=SPACE.completions)
        observed = np.append(counts[common], counts[~common].sum())
        # A fixed seed and three tests: an honest sampler fails at this level once in a thousand seeds.
        assert chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > 3e-4


def test_target_has_the_autoregressive_table_that_its_own_masses_give():
    reward = binary_reward(MODEL, SUCCESS, np.random.default_rng(4))
    log_target = target(MODEL.log_probs, reward, 5.0)
    table = from_completion_log_probs(SPACE, log_target)
    np.testing.assert_allclose(table.log_probs, log_target, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(np.exp(table.log_probs).sum(axis=1), 1.0, rtol=0, atol=ROUNDING)


def test_log_z_and_divergences_equal_sums_written_out():
    reward = graded_reward(MODEL, SUCCESS, np.random.default_rng(5))
    p, r = np.exp(MODEL.log_probs[1]), reward[1]
    tilted = p * np.exp(3.0 * r)
    log_target = target(MODEL.log_probs, reward, 3.0)
    assert log_partition(MODEL.log_probs, reward, 3.0)[1] == pytest.approx(np.log(tilted.sum()), abs=ROUNDING)
    pi_star = tilted / tilted.sum()
    assert kl(log_target, MODEL.log_probs)[1] == pytest.approx((pi_star * np.log(pi_star / p)).sum(), abs=ROUNDING)
    overlap = np.minimum(pi_star, p).sum()
    assert total_variation(log_target, MODEL.log_probs)[1] == pytest.approx(1 - overlap, abs=ROUNDING)


@pytest.mark.parametrize("make", [binary_reward, graded_reward])
def test_success_probability_is_the_wanted_one_up_to_a_completion(make):
    model = random_model(Space(6, 6), 3, np.random.default_rng(6))
    reward = make(model, SUCCESS, np.random.default_rng(7))
    found = expectation(model.log_probs, reward == 1)
    nearest = np.exp(model.log_probs).max(axis=1)
    assert (np.abs(found - SUCCESS) <= nearest).all()
    assert set(np.unique(reward)) == ({0.0, 1.0} if make is binary_reward else {0.0, 0.25, 0.5, 0.75, 1.0})


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected \(prompts, 40, 4\)"):
        EnumerableModel(SPACE, np.zeros((3, 39, 4)))
