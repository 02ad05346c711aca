"""GRPO, GSPO and A*-PO as their papers have them, which trainers are held against.

- GRPO (arXiv 2402.03300) and GSPO (arXiv 2507.18071): clipped ratio times group-normalised advantage.
- A*-PO (arXiv 2505.20686): regression of the policy's log-ratio onto an optimal advantage.
"""

import torch

STD_FLOOR = 1e-4  # TRL's guard against a group of equal rewards, whose advantages are 0 either way


def group_advantage(reward, group):
    """``A = (r - mean) / (std + 1e-4)`` within each group, std with K - 1; 0 in a group of one."""
    members, index = torch.unique(group, return_inverse=True)
    zeros = reward.new_zeros(members.numel())
    count = zeros.index_add(0, index, torch.ones_like(reward))
    centred = reward - (zeros.index_add(0, index, reward) / count)[index]
    variance = zeros.index_add(0, index, centred.square()) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt()[index] + STD_FLOOR)


def grpo_loss(token_log_pi, token_log_old, advantage, mask, *, clip_low=0.2, clip_high=0.2, length):
    """``-mean_i [1/n_i] sum_t min(rho_t A_i, clip(rho_t) A_i)``, ``rho_t = pi / pi_old`` of token t.

    ``mean`` divides each completion's sum by its tokens n_i, as published (TRL's loss_type ``grpo``); ``sum`` does not
    (TRL's ``dr_grpo`` up to a constant); ``batch`` divides the sum over the batch by all its tokens (TRL's default
    ``dapo``, DAPO, arXiv 2503.14476), which is what the method ``grpo`` trains with.
    """
    ratio = torch.exp(token_log_pi - token_log_old.detach())
    per_token = clipped(ratio, advantage[:, None], clip_low, clip_high)
    totals, lengths = (per_token * mask).sum(dim=1), mask.sum(dim=1)
    if length == "batch":
        return -totals.sum() / lengths.sum().clamp(min=1)
    return -(totals / lengths.clamp(min=1) if length == "mean" else totals).mean()


def gspo_loss(token_log_pi, token_log_old, advantage, mask, *, clip_low=3e-4, clip_high=4e-4, length="mean"):
    """``-mean_i min(s_i A_i, clip(s_i) A_i)`` with ``s_i = (pi / pi_old)^(1 / n_i)``, or without the root (``sum``)."""
    log_ratio = ((token_log_pi - token_log_old.detach()) * mask).sum(dim=1)
    ratio = torch.exp(log_ratio / mask.sum(dim=1).clamp(min=1) if length == "mean" else log_ratio)
    return -clipped(ratio, advantage, clip_low, clip_high).mean()


def a_star_po_loss(log_pi, log_ref, reward, value, *, beta2):
    """``mean (beta2 (log pi - log pi_ref) + V - r)^2`` with V frozen, in units of the reward."""
    return (beta2 * (log_pi - log_ref) + value - reward).square().mean()


def clipped(ratio, advantage, low, high):
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
