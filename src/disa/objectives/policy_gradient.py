"""GRPO (arXiv 2402.03300) and GSPO (arXiv 2507.18071): clipped ratio times group-normalised advantage.

Training uses TRL's own; these are the formulas, which the tests hold against it, for use from Python. Both maximise
reward: their optimum is a policy of best completions and no distribution over them.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from disa.objectives.trajectory_balance import Length

_STD_FLOOR = 1e-4
"""TRL's guard against a group of equal rewards, whose advantages are 0 either way."""


def group_advantage(reward: Float[Tensor, " batch"], group: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """``A = (r - mean) / (std + 1e-4)`` within each group, std with K - 1; 0 in a group of one.

    Parameters
    ----------
    reward : Tensor, shape (batch,)
    group : Tensor of int, shape (batch,)
        Completions of one prompt share a number.
    """
    members, index = torch.unique(group, return_inverse=True)
    zeros = reward.new_zeros(members.numel())
    count = zeros.index_add(0, index, torch.ones_like(reward))
    centred = reward - (zeros.index_add(0, index, reward) / count)[index]
    variance = zeros.index_add(0, index, centred.square()) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt()[index] + _STD_FLOOR)


def grpo_loss(
    token_log_pi: Float[Tensor, "batch tokens"],
    token_log_old: Float[Tensor, "batch tokens"],
    advantage: Float[Tensor, " batch"],
    mask: Int[Tensor, "batch tokens"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    length: Length | Literal["batch"],
) -> Float[Tensor, ""]:
    """``-mean_i [1/n_i] sum_t min(rho_t A_i, clip(rho_t) A_i)``, ``rho_t = pi / pi_old`` of token t.

    With ``length="batch"`` every token of the batch weighs the same: ``-sum_i sum_t min(...) / sum_i n_i``.

    Parameters
    ----------
    token_log_pi, token_log_old : Tensor, shape (batch, tokens)
        Log-probability of each token under the policy and under the one that drew it, nats. The latter carries no
        gradient.
    advantage : Tensor, shape (batch,)
        A, as :func:`group_advantage` gives it.
    mask : Tensor of int, shape (batch, tokens)
        1 for tokens of the completion, 0 for padding.
    clip_low, clip_high : float
        rho_t is kept in [1 - clip_low, 1 + clip_high] where that lowers the objective.
    length : {"sum", "mean", "batch"}
        ``mean`` divides each completion's sum by its tokens n_i, as published (TRL's loss_type ``grpo``); ``sum`` does
        not (TRL's ``dr_grpo`` up to a constant); ``batch`` divides the sum over the batch by all its tokens (TRL's
        default ``dapo``, DAPO, arXiv 2503.14476), which is what the method ``grpo`` trains with.
    """
    ratio = torch.exp(token_log_pi - token_log_old.detach())
    per_token = _clipped(ratio, advantage[:, None], clip_low, clip_high)
    totals, lengths = (per_token * mask).sum(dim=1), mask.sum(dim=1)
    if length == "batch":
        return -totals.sum() / lengths.sum().clamp(min=1)
    return -(totals / lengths.clamp(min=1) if length == "mean" else totals).mean()


def gspo_loss(
    token_log_pi: Float[Tensor, "batch tokens"],
    token_log_old: Float[Tensor, "batch tokens"],
    advantage: Float[Tensor, " batch"],
    mask: Int[Tensor, "batch tokens"],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    length: Length = "mean",
) -> Float[Tensor, ""]:
    """``-mean_i min(s_i A_i, clip(s_i) A_i)`` with ``s_i = (pi / pi_old)^(1 / n_i)`` of the whole completion.

    Parameters
    ----------
    token_log_pi, token_log_old, advantage, mask
        As in :func:`grpo_loss`.
    clip_low, clip_high : float
        s_i is kept in [1 - clip_low, 1 + clip_high] where that lowers the objective.
    length : {"sum", "mean"}
        ``mean`` takes the n_i-th root, as published (the clip range is for it); ``sum`` takes the plain ratio.
    """
    log_ratio = ((token_log_pi - token_log_old.detach()) * mask).sum(dim=1)
    ratio = torch.exp(log_ratio / mask.sum(dim=1).clamp(min=1) if length == "mean" else log_ratio)
    return -_clipped(ratio, advantage, clip_low, clip_high).mean()


def _clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
