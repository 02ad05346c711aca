"""Certificates of a run's policies: how near they came to the target on held-out prompts, with stated confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from disa.anchor import Anchor
from disa.display.table import Table
from disa.evaluation.certificate import Certificate, certify
from disa.partition.draws import collect_draws, trajectory_columns
from disa.partition.log_weights import linear_weights, soft_success
from disa.runs.records import EvaluationRecord, ScoredTrajectory

SPLIT = "heldout"


def certificates_of_models(
    records: Sequence[EvaluationRecord], rows: Sequence[ScoredTrajectory], anchor: Anchor
) -> dict[str, Certificate]:
    """One per model, the reference included, over the held-out prompts that have trajectories and samples of both.

    Empty where there are none, or where weights are unbounded: no reference draws, or an unknown proposal.
    """
    sampled = [r for r in records if r.split == SPLIT and r.log_pi is not None and r.log_ref is not None]
    theirs = [r for r in sampled if r.model == "reference" and r.reward is not None]
    drawn = {row.prompt_id for row in rows if row.source == "reference"}
    prompt_ids = sorted({r.prompt_id for r in theirs} & drawn)
    index = {prompt_id: i for i, prompt_id in enumerate(prompt_ids)}
    rows = [row for row in rows if row.prompt_id in index]
    if not rows or any(row.log_proposal is None for row in rows):
        return {}
    beta, reward_range = anchor.fingerprint.inverse_temperature, anchor.reward_range
    draws = collect_draws(**trajectory_columns(prompt_ids, rows), beta=beta, reward_range=reward_range)
    pilots = [r for r in theirs if r.prompt_id in index]
    found = {}
    for model in dict.fromkeys(r.model for r in sampled):
        own = [r for r in sampled if r.model == model and r.prompt_id in index]
        if {r.prompt_id for r in own} < index.keys():
            continue
        found[model] = certify(
            [r.log_pi - r.log_ref for r in own],  # type: ignore[operator]
            [np.nan if r.reward is None else r.reward for r in own],
            [index[r.prompt_id] for r in own],
            linear_weights(draws.log_w) * draws.soft,
            draws.prompt,
            soft_success(np.array([r.reward for r in pilots], dtype=np.float64), beta, reward_range),
            [index[r.prompt_id] for r in pilots],
            largest_weight=float((draws.counts / draws.reference_counts).max()),
            beta=beta,
            reward_range=reward_range,
        )
    return found


def certificate_table(found: dict[str, Certificate]) -> list[Table]:
    """One row per model; none without certificates."""
    if not found:
        return []
    any_ = next(iter(found.values()))
    columns = ["KL to the target, at most", "TV, at most", "without margins", "margin of samples"]
    rows = [["model", *columns, "margin of trajectories", "largest log-ratio seen", "to tighten"]]
    for model, c in found.items():
        numbers = (c.kl, c.tv, c.estimate, c.from_samples, c.from_trajectories, c.largest)
        rows.append([model, *(f"{number:.3f}" for number in numbers), c.advice])
    caption = (
        f"Upper bounds on means over {any_.prompts} held-out prompts, each with {any_.level:.0%} confidence, nats. "
        "They hold for any number of samples and trajectories; a completion more likely than under the target by more "
        f"than {any_.ceiling:g} nats counts as that. They are bounds and not estimates."
    )
    return [Table(rows, "Certificate", caption)]
