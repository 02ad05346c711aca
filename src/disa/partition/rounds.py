"""What a round of further draws adds: by the precision of log Z, or by the flags of its estimates."""

from __future__ import annotations

from typing import Any

from disa.partition.config import PartitionConfig
from disa.partition.plan import plan_round, require_weights, resample_flagged
from disa.partition.stage import VERSION, estimate_drawn
from disa.proposals.config import DrawPlan, ProposalsConfig
from disa.runs.records import Prompt, ScoredTrajectory


def round_target(
    config: ProposalsConfig, estimator: PartitionConfig, beta: float, reward_range: tuple[float, float]
) -> dict[str, Any]:
    """The settings, beside its own, that a round's plan depends on."""
    target: dict[str, Any] = {"inverse_temperature": beta, "reward_range": list(reward_range)}
    if config.resample:
        # What raises the flags; a regressor has no say.
        flags = {name: value for name, value in estimator.identity().items() if name != "regressor"}
        target["flags"] = flags | {"version": VERSION}
    return target


def further_draws(
    number: int,
    config: ProposalsConfig,
    estimator: PartitionConfig,
    beta: float,
    reward_range: tuple[float, float],
    prompts: list[Prompt],
    rows: list[ScoredTrajectory],
) -> DrawPlan:
    """Draws of round ``number`` after everything scored so far, of the training prompts.

    ``prompts`` are of all splits: the gate of ``resample`` learns from them together.
    """
    if config.resample:
        if estimator.method != "pass_rate":
            require_weights(rows, "proposals.resample")
        known = estimate_drawn(estimator, beta, reward_range, prompts, rows)
        return resample_flagged(rows, {row.prompt_id: row.flags for row in known if row.split == "train"})
    assert config.adaptive is not None  # what else has rounds
    train = {prompt.prompt_id for prompt in prompts if prompt.split == "train"}
    rows = [row for row in rows if row.prompt_id in train]
    return plan_round(
        rows,
        budget=(config.per_prompt * len(train) - len(rows)) // (config.adaptive.rounds - number + 1),
        cap=config.adaptive.cap,
        reference_share=config.reference_share,
        precision=config.adaptive.precision,
        outlook=(1.0 - config.reference_share) * config.per_prompt,
        beta=beta,
        reward_range=reward_range,
    )
