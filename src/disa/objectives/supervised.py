"""Supervised learning on stored completions: the baseline that ignores where they came from.

Its optimum is the distribution of the kept trajectories, ``mu(y) k(y)`` normalised, with k the weight: neither
the reference nor log Z enters. The forward projection is the same loss with the density ratio as weight.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from disa.objectives.trajectory_balance import Length


def supervised_loss(
    log_pi: Float[Tensor, " batch"],
    weight: Float[Tensor, " batch"],
    *,
    length: Length,
    lengths: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """``-sum(k log pi) / batch`` (``sum``) or ``-sum(k log pi) / sum(k n)`` (``mean``).

    Parameters
    ----------
    log_pi : Tensor, shape (batch,)
        Sums over tokens.
    weight : Tensor, shape (batch,)
        k: 1 for correct completions and 0 for others, or the reward. Carries no gradient.
    length : {"sum", "mean"}
        ``sum`` is maximum likelihood of completions; ``mean`` the cross-entropy per token, the usual loss of
        supervised fine-tuning, with n the tokens of each completion.
    lengths : Tensor of int, shape (batch,)
        Needed exactly with ``mean``.
    """
    weight = weight.detach()
    total = -(weight * log_pi).sum()
    if length == "sum":
        return total / log_pi.numel()
    if lengths is None:
        raise ValueError("length='mean' needs lengths, the number of tokens of each completion")
    # A batch of weight zero has loss zero; the floor only keeps it from being 0 / 0.
    return total / (weight * lengths).sum().clamp(min=1e-12)
