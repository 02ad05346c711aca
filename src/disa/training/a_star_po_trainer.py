"""A*-PO: a frozen value from a few reference samples, then one completion a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.objectives.log_z import reference_log_z
from disa.runs.records import ScoredTrajectory
from disa.training.balance_config import BalanceConfig
from disa.training.balance_trainer import BalanceTrainer

VALUE_SAMPLES = 8
"""Reference samples a prompt of the published method."""


@dataclass
class AStarPOConfig(BalanceConfig):
    """Configuration of :class:`AStarPOTrainer`; ``inverse_temperature`` is 1/beta2."""

    lengths: ClassVar[tuple[str, ...]] = ("sum",)

    num_generations: int | None = field(default=1, metadata={"help": "Completions a prompt; one, as published."})


class AStarPOTrainer(BalanceTrainer):
    """Regression onto the optimal advantage (A*-PO, arXiv 2505.20686).

    Minimises ``(beta2 (log pi - log pi_ref) + V - r)^2``, which is beta2^2 times the squared trajectory-balance
    residual with log Z = V / beta2, written as a factor on the residual that all trajectory-balance trainers
    compute, mask and audit in one place.

    Parameters
    ----------
    values : mapping of prompt id to float
        log Z = V / beta2, as :func:`reference_values` gives it.
    others
        As in :class:`BalanceTrainer`; the dataset needs the column ``prompt_id``.

    Raises
    ------
    DisaError
        Where a prompt has no value.
    """

    _tag_names = ["trl", "a2po"]
    _name = "A*-PO"
    _paper = {"title": "Accelerating RL for LLM Reasoning with Optimal Advantage Regression", "id": "2505.20686"}

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        values: Mapping[str, float],
        args: AStarPOConfig,
        train_dataset: Any,
        **others: Any,
    ) -> None:
        datasets = [d for d in (train_dataset, others.get("eval_dataset")) if d is not None]
        for prompt_id in (p for dataset in datasets for p in dataset.unique("prompt_id")):
            if prompt_id not in values:
                raise DisaError(
                    f"no value for prompt {prompt_id}; {len(values)} prompts have one",
                    where="AStarPOTrainer",
                    fix="train on prompts whose reference trajectories were drawn and scored",
                )
        self._values = values
        super().__init__(model, reward_funcs, args, train_dataset, **others)

    def _known_log_z(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> Tensor:
        values = [self._values[row["prompt_id"]] for row in rows]
        return torch.tensor(values, dtype=torch.float64, device=batch["completion_ids"].device)

    def _transform_residual(self, residual: Tensor, moved: Tensor) -> Tensor:
        return residual / self.args.inverse_temperature


def reference_values(
    rows: Sequence[ScoredTrajectory], *, inverse_temperature: float, beta1: float | None = None, n: int = VALUE_SAMPLES
) -> dict[str, float]:
    """``V / beta2`` of every prompt from the first ``n`` trajectories that the reference drew.

    Parameters
    ----------
    rows : sequence of ScoredTrajectory
    inverse_temperature : float
        1 / beta2.
    beta1 : float, optional
        The value's own temperature; beta2 by default.
    n : int

    Returns
    -------
    dict
        Nats, by prompt id.

    Raises
    ------
    DisaError
        Where a prompt has fewer than ``n`` reference trajectories.
    """
    beta2 = 1.0 / inverse_temperature
    rewards = _reference_rewards(rows, n)
    table = torch.tensor(list(rewards.values()), dtype=torch.float64)
    values = reference_log_z(table, beta1=beta2 if beta1 is None else beta1, beta2=beta2)
    return dict(zip(rewards, values.tolist(), strict=True))


def unsolved(rows: Sequence[ScoredTrajectory], *, n: int = VALUE_SAMPLES) -> set[str]:
    """Prompts none of whose first ``n`` reference trajectories has a reward: those the published method drops."""
    return {prompt_id for prompt_id, rewards in _reference_rewards(rows, n).items() if not any(rewards)}


def _reference_rewards(rows: Sequence[ScoredTrajectory], n: int) -> dict[str, list[float]]:
    rewards: dict[str, list[float]] = {row.prompt_id: [] for row in rows}
    for row in sorted(rows, key=lambda row: row.draw):
        if row.source == "reference":
            rewards[row.prompt_id].append(row.reward)
    for prompt_id, found in rewards.items():
        if len(found) < n:
            raise DisaError(
                f"prompt {prompt_id} has {len(found)} reference trajectories, its value needs {n}",
                where="training: A*-PO",
                fix="raise proposals.per_prompt (proposals.adaptive.pilot, where that is set) or reference_share",
            )
    return {prompt_id: found[:n] for prompt_id, found in rewards.items()}
