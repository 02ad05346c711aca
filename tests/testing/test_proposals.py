import numpy as np
import pytest

from disa.testing import PROPOSALS, Space, binary_reward, expectation, make_proposal, random_model
from disa.testing.proposals import Strength

REFERENCE = random_model(Space(6, 5), 3, np.random.default_rng(0))
REWARD = binary_reward(REFERENCE, np.array([0.4, 0.06, 0.003]), np.random.default_rng(1))


def proposal(strength):
    return make_proposal(REFERENCE, REWARD, strength, np.random.default_rng(2))


def divergence_on_successes(mu):
    """KL(reference given success || mu): the log of the draws that importance sampling needs."""
    p = np.exp(REFERENCE.log_probs) * REWARD
    p /= p.sum(axis=1, keepdims=True)
    return np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - mu.log_probs), 0.0).sum(axis=1)


@pytest.mark.parametrize("strength", PROPOSALS.values(), ids=PROPOSALS)
def test_proposals_are_normalised_keep_the_support_and_succeed_more_often_than_the_reference(strength):
    mu = proposal(strength)
    # Rounding of a sum of some thousand terms that add to one.
    np.testing.assert_allclose(np.exp(mu.log_probs).sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert np.isfinite(mu.log_probs).all()
    assert (expectation(mu.log_probs, REWARD) > expectation(REFERENCE.log_probs, REWARD)).all()


def test_no_guidance_gives_the_reference():
    np.testing.assert_allclose(proposal(Strength(guidance=0.0)).log_probs, REFERENCE.log_probs, rtol=0, atol=1e-12)


def test_full_guidance_without_noise_is_the_reference_given_success_but_for_the_floor():
    mu = proposal(Strength(guidance=1.0))
    # At each of at most five steps, tokens that cannot succeed keep 2% of the start's value each.
    assert (divergence_on_successes(mu) < 0.1).all()
    assert (divergence_on_successes(mu) > 0.0).all()


def test_strengths_are_what_their_names_say():
    success = {name: expectation(proposal(s).log_probs, REWARD).mean() for name, s in PROPOSALS.items()}
    assert success["weak"] < success["drifted"] < success["strong"] < success["sharp"]
    distance = {name: divergence_on_successes(proposal(s)).mean() for name, s in PROPOSALS.items()}
    assert distance["strong"] < min(distance["weak"], distance["drifted"], distance["sharp"])
