"""Where log Z comes from: the one thing in which DISA, A*-PO, VarGrad, GFlowRL and FlowRL differ.

All five put it into :func:`disa.objectives.trajectory_balance.trajectory_balance_residual`::

    frozen    DISA     the anchor's estimate, made before there was a policy
              A*-PO    beta V, V from a few reference samples             reference_log_z
    group     VarGrad, GFlowRL    mean over a prompt's completions       group_log_z
    learned   FlowRL   a head on the prompt's hidden states, trained     masked_mean, then the head

Group and learned values follow the policy: the first is an estimate of log Z - KL(pi || pi*) from K
completions, the second converges to it. Only the frozen one is a statement about the target.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from disa.objectives.trajectory_balance import Length, per_length


def group_log_z(
    log_sampler: Float[Tensor, " batch"],
    log_ref: Float[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    group: Int[Tensor, " batch"],
    *,
    beta: float,
    length: Length = "sum",
    lengths: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """``log Z_hat = mean over the group of (beta r + (log pi_ref - log pi_sampler) / n)``, without gradient.

    VarGrad (Richter et al., arXiv 2010.10436; TBA, arXiv 2503.18929) and GFlowRL (arXiv 2607.13394, Eq. 4). With it
    the mean squared residual of a group is the log-partition variance: the variance of log Z_hat over completions. In a
    group of one the residual is zero whatever the reward: nothing is learned.

    Parameters
    ----------
    log_sampler : Tensor, shape (batch,)
        Log-probability under the policy that drew the completion (on fresh completions, the policy itself).
    log_ref, reward : Tensor, shape (batch,)
        A NaN reward is no member of its group.
    group : Tensor, shape (batch,)
        Completions of one prompt share a number.
    beta : float
        Inverse temperature.
    length, lengths
        As in :func:`disa.objectives.trajectory_balance.trajectory_balance_residual`.

    Returns
    -------
    Tensor, shape (batch,)
        Nats; NaN for a group without a decided reward.
    """
    single = (beta * reward - per_length(log_sampler - log_ref, length, lengths)).detach()
    decided = ~single.isnan()
    members, index = torch.unique(group, return_inverse=True)
    zeros = single.new_zeros(members.numel())
    totals = zeros.index_add(0, index, single.masked_fill(~decided, 0.0))
    return (totals / zeros.index_add(0, index, decided.to(single.dtype)))[index]


def reference_log_z(
    reward: Float[Tensor, "prompts samples"], *, beta1: float, beta2: float
) -> Float[Tensor, " prompts"]:
    """``V / beta2`` with A*-PO's ``V = beta1 log mean_i exp(r_i / beta1)`` over reference samples (arXiv 2505.20686).

    With beta1 = beta2 = 1/beta this is log of the mean of exp(beta r): importance sampling of log Z with the
    reference as its own proposal.
    """
    scaled = torch.logsumexp(reward / beta1, dim=1) - torch.log(torch.full_like(reward[:, 0], reward.shape[1]))
    return beta1 / beta2 * scaled


def masked_mean(
    hidden: Float[Tensor, "batch tokens width"], mask: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch width"]:
    """Mean hidden state over the tokens of a mask: what FlowRL's head reads of a prompt, its last token included."""
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
