import numpy as np
import pytest
from six_outcomes import GRADES, PASSES, PROPOSAL, REFERENCE, exact_log_z, population, sample

from disa.errors import DisaError
from disa.partition import estimate_log_partition_batch
from disa.partition.draws import collect_draws
from disa.partition.estimators import ESTIMATORS
from disa.partition.sweep import sweep_log_partition, sweep_log_z
from length_normalised import length_normalised_lambda

BETAS = [0.5, 5.0, 15.0]
LENGTHS = np.array([1, 2, 3, 5, 8, 13])


def with_lengths(draws_per_source, rewards=GRADES):
    outcomes = [
        np.repeat(np.arange(6), np.rint(sampling * draws_per_source).astype(int)) for sampling in (REFERENCE, PROPOSAL)
    ]
    return population(draws_per_source, rewards) | {"lengths": LENGTHS[np.concatenate(outcomes)].astype(float)}


@pytest.mark.parametrize("rewards", [PASSES, GRADES], ids=["binary", "graded"])
def test_sweep_equals_a_fresh_estimate_at_every_inverse_temperature(rewards):
    arrays = sample(np.random.default_rng(0), 20, 64, 192, rewards)
    swept = sweep_log_z(collect_draws(**arrays, beta=1.0, reward_range=(0, 1)), BETAS, (0, 1))
    for column, beta in enumerate(BETAS):
        batch = estimate_log_partition_batch(**arrays, beta=beta)
        assert set(batch.method) == {"mixture"}
        np.testing.assert_allclose(swept[:, column], batch.log_z, rtol=1e-12)


@pytest.mark.parametrize("method", [m for m in ESTIMATORS if m != "mixture"])
def test_sweep_keeps_the_method_that_each_prompt_was_estimated_by(method):
    arrays = sample(np.random.default_rng(0), 20, 64, 192, GRADES)
    # Every second prompt by the default, whose gate stays open here at every inverse temperature.
    methods = ["mixture", method] * 10
    swept = sweep_log_partition(**arrays, betas=BETAS, methods=methods)
    for column, beta in enumerate(BETAS):
        default, own = (estimate_log_partition_batch(**arrays, beta=beta, method=m).log_z for m in ("mixture", method))
        np.testing.assert_allclose(swept[::2, column], default[::2], rtol=1e-12)
        np.testing.assert_allclose(swept[1::2, column], own[1::2], rtol=1e-12)
        assert np.abs(own - default).max() > 1e-6


def test_sweep_refuses_methods_that_do_not_fit_the_draws():
    arrays = sample(np.random.default_rng(0), 2, 0, 8, GRADES)
    for methods, message in [
        (["mixture"], "methods: 1 methods for 2 prompts"),
        (["mixture", "posterior"], "methods, prompt 1: is 'posterior', expected one of mixture"),
        (["mixture", "pass_rate"], "methods, prompt 1: method pass_rate needs reference draws"),
    ]:
        with pytest.raises(DisaError, match=message):
            sweep_log_partition(**arrays, betas=BETAS, methods=methods)


def test_sweep_is_close_to_the_exact_log_z_at_every_inverse_temperature():
    draws = collect_draws(**population(10_000, GRADES), beta=1.0, reward_range=(0, 1))
    swept = sweep_log_z(draws, BETAS, (0, 1))[0]
    # Expected numbers leave only the half hit, w_bar / (2N) <= 1 / 40000 of q >= 0.01.
    np.testing.assert_allclose(swept, [exact_log_z(GRADES, beta) for beta in BETAS], atol=1 / 400)


def test_sweep_refuses_an_inverse_temperature_of_zero():
    draws = collect_draws(**population(100), beta=1.0, reward_range=(0, 1))
    with pytest.raises(DisaError, match="betas holds 0.0"):
        sweep_log_z(draws, [1.0, 0.0], (0, 1))


@pytest.mark.parametrize("beta", [0.5, 3.0, 15.0])
def test_lambda_solves_its_equation_under_the_enumerated_reference(beta):
    draws = collect_draws(**with_lengths(100), beta=beta, reward_range=(0, 1))
    root = length_normalised_lambda(draws, beta, (0, 1))[0]
    value = np.sum(REFERENCE * np.exp(LENGTHS * (beta * GRADES - root)))
    # The left side falls by about |y| <= 13 per unit of lambda; bisection leaves beta / 2^60.
    assert value == pytest.approx(1.0, abs=1e-9)


def test_lambda_is_log_z_for_completions_of_one_token_and_not_otherwise():
    arrays = with_lengths(100)
    one_token = collect_draws(**arrays | {"lengths": np.ones(200)}, beta=3.0, reward_range=(0, 1))
    assert length_normalised_lambda(one_token, 3.0, (0, 1))[0] == pytest.approx(exact_log_z(GRADES, 3.0), abs=1e-9)
    longer = collect_draws(**arrays, beta=3.0, reward_range=(0, 1))
    assert abs(length_normalised_lambda(longer, 3.0, (0, 1))[0] - exact_log_z(GRADES, 3.0)) > 0.3


def test_lambda_stays_within_beta_times_the_rewards_at_extreme_lengths_and_weights():
    rng = np.random.default_rng(1)
    draws = collect_draws(
        rng.random(100),
        prompt_index=np.repeat([0, 1], 50),
        log_ref=np.full(100, -5e4),
        log_proposal=-5e4 + 1e4 * rng.normal(size=100),
        from_reference=np.tile(np.arange(50) < 10, 2),
        lengths=rng.integers(1, 30_000, 100),
        beta=1e3,
        reward_range=(0, 1),
    )
    root = length_normalised_lambda(draws, 1e3, (0, 1))
    assert ((root >= 0) & (root <= 1e3)).all()


def test_lambda_needs_lengths():
    with pytest.raises(DisaError, match="lengths"):
        length_normalised_lambda(collect_draws(**population(100), beta=1.0, reward_range=(0, 1)), 1.0, (0, 1))
