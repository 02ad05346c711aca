"""A space of six completions on which every expectation is a sum, and draws from it."""

import itertools

import numpy as np

REFERENCE = np.array([0.50, 0.30, 0.10, 0.05, 0.04, 0.01])
PROPOSAL = np.array([0.10, 0.10, 0.20, 0.30, 0.20, 0.10])
PASSES = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])  # success probability 0.05 under the reference
GRADES = np.array([0.0, 0.2, 0.0, 0.5, 0.9, 1.0])


def exact_log_z(rewards, beta):
    return np.log(np.sum(REFERENCE * np.exp(beta * rewards)))


def exact_q(rewards, beta):
    return np.sum(REFERENCE * np.expm1(beta * rewards)) / np.expm1(beta)


def arrays(outcomes, from_reference, rewards=PASSES, proposal=PROPOSAL, reference=REFERENCE):
    """Arguments of the batch estimator for outcomes and sources of shape (prompts, draws)."""
    outcomes, from_reference = np.asarray(outcomes), np.broadcast_to(from_reference, np.shape(outcomes))
    with np.errstate(divide="ignore"):
        log_ref, log_proposal = np.log(reference), np.log(proposal)
    return {
        "rewards": rewards[outcomes].ravel(),
        "prompt_index": np.repeat(np.arange(outcomes.shape[0]), outcomes.shape[1]),
        "log_ref": log_ref[outcomes].ravel(),
        "log_proposal": log_proposal[outcomes].ravel(),
        "from_reference": from_reference.ravel(),
    }


def every_sample(n_reference, n_proposal, rewards=PASSES):
    """Every possible sample of the given size, as one prompt each, and its probability."""
    n = n_reference + n_proposal
    outcomes = np.array(list(itertools.product(range(6), repeat=n)))
    from_reference = np.arange(n) < n_reference
    laws = np.where(from_reference[:, None], REFERENCE, PROPOSAL)
    probability = np.prod(laws[np.arange(n), outcomes], axis=1)
    return arrays(outcomes, from_reference, rewards), probability


def population(draws_per_source, rewards=PASSES):
    """One prompt whose draws have exactly the expected counts, half from each model."""
    outcomes, sources = [], []
    for sampling, is_reference in ((REFERENCE, True), (PROPOSAL, False)):
        counts = np.rint(sampling * draws_per_source).astype(int)
        assert np.allclose(counts, sampling * draws_per_source)
        outcomes += list(np.repeat(np.arange(6), counts))
        sources += [is_reference] * draws_per_source
    return arrays(np.array([outcomes]), np.array([sources]), rewards)


def sample(rng, prompts, n_reference, n_proposal, rewards=PASSES, proposal=PROPOSAL):
    """Random draws for some prompts, the reference's first."""
    outcomes = np.concatenate(
        [rng.choice(6, (prompts, n_reference), p=REFERENCE), rng.choice(6, (prompts, n_proposal), p=proposal)], axis=1
    )
    return arrays(outcomes, np.arange(n_reference + n_proposal) < n_reference, rewards, proposal)
