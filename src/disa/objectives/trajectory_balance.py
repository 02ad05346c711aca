"""Relative trajectory balance: one residual and one loss for every source of log Z.

Trajectory balance (Malkin et al., arXiv 2201.13259) for a target relative to a prior, pi_ref exp(beta r) / Z, has the
residual ``log Z + log pi - log pi_ref - beta r`` (Venkatraman et al., arXiv 2405.20971). DISA (arXiv 2605.17295),
A*-PO, VarGrad, GFlowRL and FlowRL all minimise the mean of its square. They differ in where log Z comes from, and
:mod:`disa.objectives.log_z` has one function or rule per source.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Length = Literal["sum", "mean"]
"""What a sequence's log-ratio is: the sum over its tokens, or that sum over the number of tokens."""


def trajectory_balance_residual(
    log_pi: Float[Tensor, " batch"],
    log_ref: Float[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    log_z: Float[Tensor, " batch"],
    *,
    beta: float,
    length: Length = "sum",
    lengths: Int[Tensor, " batch"] | None = None,
    learned: bool = False,
) -> Float[Tensor, " batch"]:
    """``delta = log Z + (log pi - log pi_ref) / n - beta r``, in nats, with n = 1 or the number of tokens.

    Parameters
    ----------
    log_pi, log_ref, reward, log_z : Tensor, shape (batch,)
        Log-probabilities are sums over tokens.
    beta : float
        Inverse temperature.
    length : {"sum", "mean"}
        ``sum`` (n = 1): zero for every completion exactly when pi = pi_ref exp(beta r) / Z. ``mean`` (n the
        completion's tokens, as FlowRL published it): zero for pi = pi_ref exp(n (beta r - lambda)), another target,
        whose normaliser lambda is not log Z.
    lengths : Tensor of int, shape (batch,)
        Tokens of each completion; needed exactly with ``mean``.
    learned : bool
        Whether log_z comes from a trained head, the one case in which it may require grad.

    Raises
    ------
    ValueError
        Where log_ref, or a log_z that is not learned, would receive gradients; where lengths are missing.
    """
    for name, tensor, free in (("log_z", log_z, learned), ("log_ref", log_ref, False)):
        if tensor.requires_grad and not free:
            raise ValueError(f"{name} requires grad, but DISA's {name} is frozen; pass {name}.detach()")
    return log_z + per_length(log_pi - log_ref, length, lengths) - beta * reward


def per_length(
    log_ratio: Float[Tensor, " batch"], length: Length, lengths: Int[Tensor, " batch"] | None
) -> Float[Tensor, " batch"]:
    """Log-ratio of a whole completion (``sum``) or its mean over tokens (``mean``); an empty one counts as a token."""
    if length == "sum":
        return log_ratio
    if length != "mean":
        raise ValueError(f"length={length!r}, expected 'sum' or 'mean'")
    if lengths is None:
        raise ValueError("length='mean' needs lengths, the number of tokens of each completion")
    return log_ratio / lengths.clamp(min=1)


def anchored_baseline(
    residual: Float[Tensor, " batch"],
    group: Int[Tensor, " batch"],
    *,
    prior_strength: float,
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Leave-one-out mean of a group's residuals, shrunk towards the frozen log Z's own baseline, zero.

    ``b_j = sum_{i != j} w_i delta_i / (n0 + sum_{i != j} w_i)``; with weights of 1 this is
    ``(K - 1) / (K - 1 + n0) * mean_{i != j} delta_i``. As b_j does not depend on completion j, the gradient keeps its
    expectation: ``E[w_j b_j grad log pi(y_j)] = E[b_j] E_sampler[w grad log pi]``, which is 0 for
    ``w = pi / pi_sampler`` and ``-E[b_j] E_sampler[(pi / pi_sampler - cap)^+ grad log pi]`` with a cap. A completion
    alone in its group gets b_j = 0.

    Parameters
    ----------
    residual : Tensor, shape (batch,)
        Under the policy as it is, whoever drew the completions.
    group : Tensor, shape (batch,)
        Completions of one prompt share a number.
    prior_strength : float
        n0 >= 0, the completions' worth of trust in the frozen log Z: infinity gives the plain
        residual, 0 the plain leave-one-out mean.
    weight : Tensor, shape (batch,), optional
        Of completions that an earlier policy drew (:func:`importance_weight`), so that b_j estimates the mean residual
        of the policy as it is; 1 where left out.
    """
    delta, w = residual.detach(), torch.ones_like(residual) if weight is None else weight.detach()
    members, index = torch.unique(group, return_inverse=True)
    totals = delta.new_zeros(members.numel())

    def others(values: Tensor) -> Tensor:
        return totals.index_add(0, index, values)[index] - values

    # Of a group of one both sums are 0, up to rounding.
    alone = totals.index_add(0, index, torch.ones_like(delta))[index] == 1
    below = (others(w) + prior_strength).clamp(min=torch.finfo(delta.dtype).tiny)
    return torch.where(alone, 0.0, others(w * delta) / below)


def importance_weight(
    log_pi: Float[Tensor, " batch"], log_sampler: Float[Tensor, " batch"], *, cap: float
) -> Float[Tensor, " batch"]:
    """``w = min(pi / pi_sampler, cap)`` of whole completions, without gradient: 1 where the policy drew them itself."""
    return torch.exp(log_pi - log_sampler).clamp(max=cap).detach()


def effective_share(log_weight: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Effective sample size over sample size, ``(sum w)^2 / (n sum w^2)``: 1 where all n weights are equal."""
    total, squares = torch.logsumexp(log_weight, dim=0), torch.logsumexp(2 * log_weight, dim=0)
    return torch.exp(2 * total - squares) / log_weight.numel()


def clip_gap(
    residual: Float[Tensor, " batch"],
    moved: Float[Tensor, " batch"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, " batch"]:
    """GFlowRL's clipped residual: the gap at sampling time kept in [-low, high], plus what the policy moved since.

    ``clip(delta - m, -low, high) + m`` with ``m = (log pi - log pi_sampler) / n``: on fresh completions m is 0
    in value and grad log pi / n in gradient, so the clip bounds how hard one completion pulls.
    """
    return (residual - moved).detach().clamp(-low, high) + moved


def trajectory_balance_loss(
    residual: Float[Tensor, " batch"],
    baseline: Float[Tensor, " batch"] | None = None,
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """``mean(w (delta - b)^2)``; on-policy its gradient is ``2 E[(delta - b) grad log pi] = 2 grad KL(pi || pi*)``.

    b and w, 0 and 1 where left out, carry no gradient.
    """
    if baseline is not None:
        residual = residual - baseline.detach()
    squares = residual.square()
    return (squares if weight is None else weight.detach() * squares).mean()


def audit_log_z_error(residual: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """``eps_hat = -log mean exp(-delta)`` over on-policy completions, an estimate of eps = log Zhat - log Z.

    Exact in expectation before the logarithm: ``E_pi[exp(-delta)] = exp(-eps)`` for every policy with
    the reference's support.
    """
    return -(torch.logsumexp(-residual, dim=0) - torch.log(torch.tensor(float(residual.numel()))))
