"""The advantage estimator and the policy loss that verl knows by the name ``disa``.

Importing this module registers both. verl imports it through the entry point ``verl.plugins`` where this package is
installed, and in Ray's workers because the launcher names it in ``VERL_USE_EXTERNAL_MODULES``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import trl
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss

from disa.errors import DisaError
from disa.objectives.trajectory_balance import anchored_baseline

NAME = "disa"
AGGREGATION = "seq-mean-token-sum"

# verl's FSDP engine sets an attribute on this class, whatever the model; trl has it no more.
if not hasattr(trl, "AutoModelForCausalLMWithValueHead"):
    trl.AutoModelForCausalLMWithValueHead = type("AutoModelForCausalLMWithValueHead", (), {})


@register_adv_est(NAME)
def residual_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray,
    config: Any,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """``A + b``, with ``A = -delta`` at sampling time and b the anchored baseline of the completion's group.

    Parameters
    ----------
    token_level_rewards : Tensor, shape (batch, tokens)
        Score less the KL penalty, whose sum over tokens is ``beta r - log Z - (log pi_old - log pi_ref)``. NaN
        where the reward is undecided.
    response_mask : Tensor, shape (batch, tokens)
        All zero in verl's padding rows, which belong to no group.
    index : ndarray of object, shape (batch,)
        Completions of one prompt share a value.
    config : mapping
        verl's ``algorithm`` section; ``disa.baseline_prior_strength`` is n0, None for no baseline, and
        ``disa.prompts`` times ``disa.completions_per_prompt`` the size of a batch.

    Returns
    -------
    advantages, returns : Tensor, shape (batch, tokens)
        The same tensor, float64 nats: one value per completion at each of its tokens, 0 behind them, NaN where
        undecided.

    Raises
    ------
    DisaError
        Where completions are missing: verl takes a session that failed, for example in a reward worker, for padding.
    """
    own = config["disa"]
    there, due = int((response_mask.sum(dim=1) > 0).sum()), own["prompts"] * own["completions_per_prompt"]
    if there != due:
        raise DisaError(
            f"{due - there} of the step's {due} completions are missing",
            where="verl, step",
            fix="look for 'Error in _run_prompt' in verl's output: a reward worker or the rollout engine failed",
        )
    advantage = token_level_rewards.double().sum(dim=1)
    prior_strength = own["baseline_prior_strength"]
    if prior_strength is not None:
        rows = (response_mask.sum(dim=1) > 0) & ~advantage.isnan()
        group = torch.as_tensor(np.unique(index, return_inverse=True)[1], device=advantage.device)
        baseline = anchored_baseline(-advantage[rows], group[rows], prior_strength=prior_strength)
        advantage = advantage.masked_scatter(rows, advantage[rows] + baseline)
    advantages = torch.where(response_mask.bool(), advantage[:, None], 0.0)
    return advantages, advantages


@register_policy_loss(NAME)
def frozen_log_z_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Squared residual ``((log pi - log pi_old) - (A + b))^2``, averaged over the global batch.

    Parameters
    ----------
    old_log_prob, log_prob : Tensor, shape (batch, tokens)
        Log-probabilities of tokens at sampling time and now.
    advantages : Tensor, shape (batch, tokens)
        Of :func:`residual_advantage`.
    response_mask : Tensor, shape (batch, tokens)
    loss_agg_mode : str
        Must be ``seq-mean-token-sum``, the mode whose result does not depend on how micro-batches are cut.
    config : verl.workers.config.ActorConfig
        ``global_batch_info`` holds the number of completions of the whole batch, in all processes.

    Returns
    -------
    loss : Tensor, shape ()
    metrics : dict
        ``disa/loss_residual_mean``, of delta - b over the micro-batch's decided completions.

    Raises
    ------
    ValueError
        For another aggregation, or with importance weights.
    """
    if loss_agg_mode != AGGREGATION or rollout_is_weights is not None:
        raise ValueError(
            f"the loss 'disa' needs loss_agg_mode={AGGREGATION!r} and no rollout_is_weights, found "
            f"{loss_agg_mode!r} and {'none' if rollout_is_weights is None else 'weights'}; start with 'disa verl'"
        )
    # Padding rows have no token: their first position stands for them, and the mask leaves it out.
    first = response_mask.int().argmax(dim=1, keepdim=True)
    advantage = advantages.gather(1, first).squeeze(1).double()
    moved = ((log_prob.double() - old_log_prob.double()) * response_mask).sum(dim=1)
    decided = ~advantage.isnan()
    residual = torch.where(decided, moved - advantage, 0.0)
    mask = response_mask.bool() & decided[:, None]
    # A completion's square is spread over its tokens, which verl adds up again.
    per_token = (residual.square() / response_mask.sum(dim=1).clamp(min=1))[:, None] * mask
    loss = agg_loss(per_token, mask, loss_agg_mode, **config.global_batch_info)
    rows = mask.any(dim=1)
    mean = residual.detach()[rows].mean().item() if rows.any() else 0.0
    return loss, {"disa/loss_residual_mean": mean}
