"""What a stored trajectory counts for: the target's density ratio, its correctness, or its reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.objectives.forward_projection import target_weight
from disa.partition.draws import Draws
from disa.partition.log_weights import balance_log_weights
from disa.partition.psis import smoothed_log_weights
from disa.runs.records import ScoredTrajectory

CORRECT = 1.0
"""Reward from which a completion counts as correct, as in evaluation."""


def target_weights(
    rows: Sequence[ScoredTrajectory], anchor: Anchor, *, tail: Literal["cap", "pareto"] = "cap", cap: float = np.inf
) -> Tensor:
    """``W = w exp(beta r) / Zhat`` of every row, the density ratio of the target to the row's own mixture.

    ``rows`` are those the anchor was estimated from, or some prompts' share of them; each prompt's share of reference
    draws is the mixture's alpha. With ``tail="pareto"`` each prompt's largest weights are replaced by the order
    statistics of the Pareto tail fitted to them (arXiv 1507.02646). No weight is above ``cap``, which trades a bias
    towards the mixture for variance. Raises DisaError where a prompt has no log Z, or a trajectory no log-probability
    under the proposal.
    """
    log_proposal = [row.log_proposal for row in rows if row.log_proposal is not None]
    if len(log_proposal) < len(rows):
        raise DisaError(
            "trajectories of an unknown proposal have no importance weight",
            where="training: offline trajectories",
            fix="give models.proposal, or set training.offline_share: 0",
        )
    _, prompt = np.unique([row.prompt_id for row in rows], return_inverse=True)
    from_reference = np.array([row.source == "reference" for row in rows])
    share = (np.bincount(prompt, from_reference) / np.bincount(prompt))[prompt]
    log_ratio = np.array([row.log_ref for row in rows]) - np.array(log_proposal)
    reward = np.array([row.reward for row in rows])
    log_z, beta = anchor.log_z([row.prompt_id for row in rows]), anchor.fingerprint.inverse_temperature
    log_w = balance_log_weights(log_ratio, share)
    if tail == "pareto":
        # Smoothed is the weight that enters the loss, w exp(beta r) / Z; what is left of it is called w again.
        tilt = beta * reward - log_z
        log_w = _smoothed(log_w + tilt, prompt, from_reference) - tilt
    return target_weight(*(torch.from_numpy(x) for x in (log_w, reward, log_z)), beta=beta, cap=cap)


def equal_prompts(rows: Sequence[ScoredTrajectory]) -> Tensor:
    """``mean(N) / N_x`` of every row, N_x being the rows of its prompt: with it every prompt counts once.

    An adaptive budget draws more where log Z is uncertain, which is no reason to train more on such a prompt. 1 where
    all prompts have equally many rows.
    """
    _, prompt, counts = np.unique([row.prompt_id for row in rows], return_inverse=True, return_counts=True)
    return torch.from_numpy((counts.mean() / counts)[prompt])


def supervised_weights(rows: Sequence[ScoredTrajectory], kind: Literal["correct", "reward"]) -> Tensor:
    """Return 1 for correct completions and 0 for others, or the reward itself.

    Raises DisaError where the reward is to be the weight and one is negative.
    """
    reward = torch.tensor([row.reward for row in rows], dtype=torch.float64)
    if kind == "correct":
        return (reward >= CORRECT).double()
    if (reward < 0).any():
        raise DisaError(
            f"reward {float(reward.min()):g} is negative and cannot weight a trajectory",
            where="training: reward-weighted supervised",
            fix="use a task whose rewards start at 0, or train on correct completions only",
        )
    return reward


def _smoothed(log_weights: np.ndarray, prompt: np.ndarray, from_reference: np.ndarray) -> np.ndarray:
    order = np.argsort(prompt, kind="stable")
    unused = np.zeros(len(order))
    draws = Draws(
        rewards=unused,
        soft=unused,
        log_ratio=unused,
        log_w=log_weights[order],
        from_reference=from_reference[order],
        lengths=None,
        prompt=prompt[order],
    )
    result = np.empty_like(log_weights)
    result[order] = smoothed_log_weights(draws)
    return result
