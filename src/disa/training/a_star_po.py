"""A*-PO's values (arXiv 2505.20686): V of every prompt from a few reference samples, frozen before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from disa.errors import DisaError
from disa.objectives.log_z import reference_log_z
from disa.runs.records import ScoredTrajectory
from disa.training.log_z import Frozen

VALUE_SAMPLES = 8
"""Reference samples per prompt of the published method."""


def a_star_po(values: Mapping[str, float], inverse_temperature: float) -> Frozen:
    """A*-PO's log Z: ``values`` as :func:`reference_values` gives them, ``inverse_temperature`` being 1 / beta2.

    It minimises ``(beta2 (log pi - log pi_ref) + V - r)^2``: the residual with log Z = V / beta2, times beta2, squared.
    """
    return Frozen(values, scale=1.0 / inverse_temperature, name="A*-PO", paper="2505.20686")


def reference_values(
    rows: Sequence[ScoredTrajectory], *, inverse_temperature: float, n: int = VALUE_SAMPLES
) -> dict[str, float]:
    """``V / beta2`` of every prompt from the first ``n`` trajectories that the reference drew.

    Raises DisaError where a prompt has fewer than ``n`` reference trajectories. Nats, by prompt id.
    """
    beta2 = 1.0 / inverse_temperature
    rewards = _reference_rewards(rows, n)
    table = torch.tensor(list(rewards.values()), dtype=torch.float64)
    values = reference_log_z(table, beta1=beta2, beta2=beta2)
    return dict(zip(rewards, values.tolist(), strict=True))


def unsolved_prompts(rows: Sequence[ScoredTrajectory], *, n: int = VALUE_SAMPLES) -> set[str]:
    """Prompts none of whose first ``n`` reference trajectories has a reward: those the published method drops."""
    return {prompt_id for prompt_id, rewards in _reference_rewards(rows, n).items() if not any(rewards)}


def _reference_rewards(rows: Sequence[ScoredTrajectory], n: int) -> dict[str, list[float]]:
    rewards: dict[str, list[float]] = {row.prompt_id: [] for row in rows}
    for row in sorted(rows, key=lambda row: row.draw):
        if row.source == "reference" and row.reward is not None:
            rewards[row.prompt_id].append(row.reward)
    for prompt_id, found in rewards.items():
        if len(found) < n:
            raise DisaError(
                f"prompt {prompt_id} has {len(found)} reference trajectories, its value needs {n}",
                where="training: A*-PO",
                fix="raise proposals.per_prompt (proposals.adaptive.pilot, where that is set) or reference_share",
            )
    return {prompt_id: found[:n] for prompt_id, found in rewards.items()}
