"""Fifteen completions, three models over them, and a policy that autograd can differentiate; float64 throughout."""

import numpy as np
import torch

from disa.testing import Space, graded_reward, log_partition, random_model, target
from disa.testing.enumerable import from_completion_log_probs

SPACE = Space(vocabulary=3, length_limit=3)
BETA = 3.0
ROUNDING = 1e-12  # sums over fifteen completions of products of a few terms below 100

_RNG = np.random.default_rng(11)
REFERENCE, PROPOSAL, POLICY = (random_model(SPACE, 1, _RNG, eos_logit=0.0) for _ in range(3))
GRADED = graded_reward(REFERENCE, np.array([0.1]), _RNG)[0]
BINARY = (GRADED == 1).astype(np.float64)
LENGTHS = SPACE.lengths.astype(np.float64)
LOG_REF, LOG_PROPOSAL = REFERENCE.log_probs[0], PROPOSAL.log_probs[0]
LOG_Z = float(log_partition(LOG_REF, GRADED, BETA))
LOG_TARGET = target(LOG_REF, GRADED, BETA)

THETA = torch.tensor(POLICY.logits[0])
"""Logits of a policy away from reference and target, shape (prefixes, vocabulary)."""
THETA_TARGET = torch.tensor(from_completion_log_probs(SPACE, LOG_TARGET[None]).logits[0])


def tensor(array):
    return torch.as_tensor(np.array(array), dtype=torch.float64)


def log_policy(theta):
    """Log-probability of every completion, as a function of the table of logits."""
    log_p = theta.log_softmax(-1)
    return torch.stack([sum(log_p[node, token] for node, token in steps) for steps in _steps()])


def _steps():
    for completion in range(SPACE.completions):
        ids = SPACE.completion_ids(completion)
        yield [(SPACE.number([*ids[:t], 0]), ids[t]) for t in range(len(ids))]


def gradient(function, theta=THETA):
    """Gradient of a scalar function of the table."""
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(function(theta), theta)[0]


def scores(theta=THETA):
    """``s = grad log pi(y)`` of every completion, shape (completions, parameters)."""
    jacobian = torch.autograd.functional.jacobian(log_policy, theta)
    return jacobian.reshape(SPACE.completions, -1)


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


def same(found, expected, tolerance=ROUNDING):
    """Equal up to rounding, relative to numbers of order one."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)
    return True
