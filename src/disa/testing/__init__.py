"""A language model small enough to enumerate, on which log Z, pi* and every expectation are exact.

The test bed of the method: it reads nothing and writes nothing. Formula, over all completions y::

    log Z(x) = log sum_y pi_ref(y | x) exp(beta r(x, y)),    pi*(y | x) = pi_ref(y | x) exp(beta r) / Z(x)

:mod:`disa.testing.hf` makes the same table an ordinary Hugging Face model.
"""

from disa.testing.enumerable import EnumerableModel, random_model
from disa.testing.exact import expectation, kl, log_partition, target, total_variation
from disa.testing.proposals import PROPOSALS, make_proposal
from disa.testing.rewards import binary_reward, graded_reward
from disa.testing.space import Space

__all__ = [
    "PROPOSALS",
    "EnumerableModel",
    "Space",
    "binary_reward",
    "expectation",
    "graded_reward",
    "kl",
    "log_partition",
    "make_proposal",
    "random_model",
    "target",
    "total_variation",
]
