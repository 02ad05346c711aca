"""Candidates of a pilot: what is said of each is exact in expectation, by enumeration of an oracle."""

import numpy as np
import pytest

from disa.partition.candidates import PilotDraws, compare_candidates, measure_candidate, pooled_weights

RNG = np.random.default_rng(0)
COMPLETIONS, ALPHA = 40, 0.25


def law(scale):
    logits = RNG.normal(0, scale, COMPLETIONS)
    return logits - np.logaddexp.reduce(logits)


LOG_REF, NEAR, FAR = law(1.0), None, law(2.0)
NEAR = 0.7 * LOG_REF + 0.3 * FAR
NEAR = NEAR - np.logaddexp.reduce(NEAR)
SUCCESS = (RNG.random(COMPLETIONS) < 0.2).astype(float)
Q = np.exp(LOG_REF) @ SUCCESS


def big_pool(n=200_000):
    """One prompt, with so many draws of each source that averages are expectations to within the stated errors."""
    sources = [LOG_REF, NEAR, FAR]
    drawn = [RNG.choice(COMPLETIONS, n, p=np.exp(log_p)) for log_p in sources]
    y = np.concatenate(drawn)
    which = np.repeat(np.arange(3), n)
    logs = np.stack([log_p[y] for log_p in sources], axis=1)
    return y, PilotDraws(np.zeros(len(y), np.intp), SUCCESS[y], LOG_REF[y], which, logs)


def exact(log_mu):
    w = 1 / (ALPHA + (1 - ALPHA) * np.exp(log_mu - LOG_REF))
    moment = np.exp(LOG_REF) @ (w * SUCCESS**2)
    given = np.exp(LOG_REF) * SUCCESS / Q
    return Q**2 / moment, given @ (LOG_REF - log_mu) - np.log(Q)


@pytest.mark.parametrize("log_mu", [NEAR, FAR])
def test_hits_and_divergence_are_those_of_the_enumerated_laws(log_mu):
    y, pool = big_pool()
    found, _ = measure_candidate(pool, "it", log_mu[y], reference_share=ALPHA, cost=4.0, budget=40.0)
    hits, divergence = exact(log_mu)
    # 600,000 draws of weights up to 3: relative errors below 1% at four standard errors.
    assert found.hits == pytest.approx(hits, rel=0.02)
    assert found.divergence == pytest.approx(divergence, abs=0.03)
    assert found.error == pytest.approx(1 / (1 + 10 * found.hits), rel=1e-12)


def test_the_reference_brings_as_many_hits_as_it_solves():
    _, pool = big_pool()
    found, _ = measure_candidate(pool, "reference", None, reference_share=1.0, cost=2.0, budget=2.0)
    assert found.hits == pytest.approx(Q, rel=0.02)
    assert found.divergence == pytest.approx(-np.log(Q), abs=0.02)  # KL of the successes from the reference itself


def test_weights_of_a_pool_sum_to_one_in_expectation():
    _, pool = big_pool()
    assert pooled_weights(pool).sum() == pytest.approx(1.0, rel=0.01)


def candidate(name, errors):
    found, _ = measure_candidate(big_pool(10)[1], name, None, reference_share=1.0, cost=1.0, budget=1.0)
    return found, np.array(errors)


def test_a_gain_within_its_standard_error_leaves_the_reference():
    rows, best, why = compare_candidates(
        [candidate("reference", [0.5, 0.5, 0.5]), candidate("bridge", [0.1, 0.7, 0.6])]
    )
    assert best == 0 and "no more than its standard error" in why and rows[1].gain > 0


def test_a_clear_gain_is_chosen_and_said():
    rows, best, why = compare_candidates(
        [candidate("reference", [0.5, 0.5, 0.6]), candidate("bridge", [0.1, 0.15, 0.2])]
    )
    assert best == 1 and why == "bridge lowers the error by 0.383 ± 0.017 at equal cost"


def test_a_worse_candidate_leaves_the_reference():
    _, best, why = compare_candidates([candidate("reference", [0.2, 0.2]), candidate("bridge", [0.3, 0.4])])
    assert best == 0 and why.startswith("no candidate has a smaller error")


def test_prompts_without_a_success_count_as_a_guess_under_every_candidate():
    y, pool = big_pool(10)
    pool = pool._replace(success=np.zeros(len(y)))
    for log_mu in (None, NEAR[y]):
        found, error = measure_candidate(pool, "it", log_mu, reference_share=ALPHA, cost=2.0, budget=20.0)
        assert error.tolist() == [1.0] and found.hits == 0.0
