"""The partition stage: scored trajectories to one estimate of log Z per prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from disa.errors import DisaError
from disa.partition.config import PartitionConfig
from disa.partition.diagnostics import bennett_null_test, coverage_profile
from disa.partition.draws import collect_draws, trajectory_columns
from disa.partition.estimate import LogPartition, LogPartitionBatch, estimate_log_partition_batch
from disa.partition.plan import spent_budget, spent_resampling, stopped_at_cap
from disa.partition.regression import PromptFeatures, regress
from disa.partition.verdict import verdict
from disa.partition.weighable import weighable
from disa.proposals.config import AdaptiveConfig, ProposalsConfig
from disa.runs.folders import StageFolder
from disa.runs.records import PartitionEstimate, Prompt
from disa.runs.scored_columns import Scored, ScoredColumns
from disa.runs.stage import Stage

VERSION = 4

MOSTLY_FLAGGED = 0.5
"""Share of flagged prompts beyond which a run warns."""

COVERAGE_THRESHOLDS = np.array([0.0, 1.0, 2.0, 3.0, 5.0, 10.0])
"""Nats of log(pi_ref / mu) at which the coverage of the reference's successes is reported."""


def partition_stage(
    config: PartitionConfig,
    beta: float,
    reward_range: tuple[float, float],
    proposals: ProposalsConfig,
    prompts: Callable[[], list[Prompt]],
    scores: dict[str, StageFolder],
    features: Callable[[list[Prompt]], PromptFeatures],
) -> Stage:
    """Describe the stage that estimates log Z from everything scored.

    ``features`` is called only where there is to be a regressor.
    """
    adaptive = proposals.adaptive

    def work(stage: StageFolder) -> None:
        rows = ScoredColumns.read(path for folder in scores.values() for path in sorted(folder.path.glob("*.parquet")))
        known = features(prompts()) if config.regressor else None
        resample = proposals.resample is not None
        run_partition(stage, config, beta, reward_range, prompts(), rows, known, adaptive, resample)

    identity = {"partition": config.identity(), "inverse_temperature": beta, "reward_range": list(reward_range)}
    # What the flag capped depends on.
    identity["capped"] = adaptive and {"cap": adaptive.cap, "precision": adaptive.precision}
    return Stage("partition", "4_partition", VERSION, identity, scores, work, says=_says)


def _says(folder: StageFolder) -> list[str]:
    found = folder.manifest["verdict"]
    flags = ", ".join(f"{name} {row['prompts']}" for name, row in found["flags"].items())
    line = f"log Z of {found['prompts']} prompts: {found['good']} without a flag" + (f"; {flags}" if flags else "")
    if found["flagged"] <= MOSTLY_FLAGGED * found["prompts"]:
        return [line]
    return [
        line,
        f"warning: more than {MOSTLY_FLAGGED:.0%} of the prompts are flagged; see disa inspect before training",
    ]


def run_partition(
    stage: StageFolder,
    config: PartitionConfig,
    beta: float,
    reward_range: tuple[float, float],
    prompts: list[Prompt],
    rows: Scored,
    features: PromptFeatures | None = None,
    adaptive: AdaptiveConfig | None = None,
    resample: bool = False,
) -> None:
    """Estimate log Z of every prompt and write ``estimates.parquet``, with a regressor also ``regressor.npz``.

    With features, every estimate becomes the regressor's posterior, and prompts without trajectories get its
    prediction. Without, a validation or held-out split without any trajectory (``per_heldout_prompt: 0``) is
    left out, and a training prompt without one is refused.

    The manifest says whether all rewards were one of the range's two ends (``binary``: q is then the
    same at any beta), the verdict, Bennett's null test of the two models' log-probabilities (its log ratio
    should be 0 within a few standard errors), how much of the reference's successes the proposal covers, and how well
    the regressor predicts prompts outside its fit. With an adaptive budget it also says how that was spent, and
    training prompts that stopped at its cap are flagged; with ``resample``, what drawing again came to.

    Undecided rows (reward None) take no part in an estimate; they count towards the cap. Raises DisaError without
    prompts or trajectories, where a prompt has none, or where one belongs to no prompt.
    """
    columns = ScoredColumns.of(rows)
    made, kept = columns.counts(), weighable(columns.decided, config.method)
    prompts, undrawn, arrays = _arrays(prompts, kept, predict=features is not None)
    batch = _estimate(config, beta, reward_range, arrays)
    estimates = [_record(prompt, batch.row(i), reward_range) for i, prompt in enumerate(prompts)]
    drawn, report = [row for row in estimates if row.split == "train"], None
    if features is not None:
        sampling: dict[str, Any] = {"beta": beta, "reward_range": reward_range, "level": config.level}
        regressor, estimates, report = regress(estimates, batch, prompts, undrawn, features, **sampling)
        regressor.save(stage.path / "regressor.npz")
    limits: dict[str, Any] = {"cap": adaptive.cap, "precision": adaptive.precision} if adaptive else {}
    known = {
        "text_level": kept.prompts_where(kept.retokenised),
        "capped": stopped_at_cap(drawn, made, **limits) if limits else set(),
    }
    estimates = [
        dataclasses.replace(e, flags=[*e.flags, *(name for name, ids in known.items() if e.prompt_id in ids)])
        for e in estimates
    ]
    stage.write_part("estimates", estimates, PartitionEstimate)

    budget = spent_budget(drawn, made, **limits) if limits else None
    if resample:
        budget = spent_resampling([row for row in estimates if row.split == "train"], made)
    draws = collect_draws(**arrays, beta=beta, reward_range=reward_range)
    profile = coverage_profile(draws, COVERAGE_THRESHOLDS)
    stage.finish(
        binary=bool(np.isin(arrays["rewards"], reward_range).all()),
        inverse_temperature=beta,
        trajectories=len(kept),
        verdict=verdict(estimates),
        null_test=bennett_null_test(draws),
        coverage={
            "nats": COVERAGE_THRESHOLDS.tolist(),
            "share": None if np.isnan(profile).any() else profile.tolist(),
        },
        regressor=report,
        budget=budget,
    )


def estimate_drawn(
    config: PartitionConfig,
    beta: float,
    reward_range: tuple[float, float],
    prompts: Sequence[Prompt],
    rows: Scored,
) -> list[PartitionEstimate]:
    """Estimates of those prompts that have decided rows, without a regressor: what is known between rounds."""
    kept = weighable(ScoredColumns.of(rows).decided, config.method)
    drawn = kept.drawn
    prompts = [prompt for prompt in prompts if prompt.prompt_id in drawn]
    if not prompts:
        return []
    batch = _estimate(config, beta, reward_range, trajectory_columns([p.prompt_id for p in prompts], kept))
    return [_record(prompt, batch.row(i), reward_range) for i, prompt in enumerate(prompts)]


def _estimate(
    config: PartitionConfig, beta: float, reward_range: tuple[float, float], arrays: Mapping[str, Any]
) -> LogPartitionBatch:
    return estimate_log_partition_batch(
        **arrays,
        beta=beta,
        reward_range=reward_range,
        method=config.method,
        interval=config.interval,
        level=config.level,
    )


def _arrays(
    prompts: Sequence[Prompt], rows: ScoredColumns, *, predict: bool
) -> tuple[list[Prompt], list[Prompt], dict[str, Any]]:
    """Return the prompts to estimate, those to predict, and the rows as the arrays that the estimators take."""
    if not prompts or not len(rows):
        missing = "prompts" if not prompts else "trajectories"
        raise DisaError(f"no {missing} to estimate log Z from", where="partition", fix="run the stages before it")
    drawn = rows.drawn
    undrawn = [prompt for prompt in prompts if prompt.prompt_id not in drawn] if predict else []
    known = [prompt for prompt in prompts if prompt.prompt_id in drawn] if predict else prompts
    known_ids = {prompt.prompt_id for prompt in known}
    if stray := next((i for i in rows.ids if i in drawn and i not in known_ids), None):
        raise DisaError(
            f"a trajectory belongs to prompt {stray}, which is not among the tasks' prompts",
            where="partition",
            fix="rerun proposals and scoring for these tasks",
        )
    drawn_splits = {prompt.split for prompt in known if prompt.prompt_id in drawn}
    prompts = [prompt for prompt in known if prompt.split in drawn_splits or prompt.split == "train"]
    for prompt in prompts:
        if prompt.prompt_id not in drawn:
            raise DisaError(
                f"prompt {prompt.prompt_id} ({prompt.split}) has no trajectory",
                where="partition",
                fix="rerun the proposals and scoring stages, or remove the prompt",
            )
    return prompts, undrawn, trajectory_columns([prompt.prompt_id for prompt in prompts], rows)


def _record(prompt: Prompt, estimate: LogPartition, reward_range: tuple[float, float]) -> PartitionEstimate:
    return PartitionEstimate(
        prompt_id=prompt.prompt_id,
        split=prompt.split,
        log_z=estimate.log_z,
        q=estimate.q,
        interval_low=estimate.interval[0],
        interval_high=estimate.interval[1],
        n=estimate.n,
        n_reference=estimate.n_reference,
        # The record holds no NaN: without reference draws it reads r_min, and n_reference = 0 says so.
        mean_reward_reference=estimate.mean_reward_reference if estimate.n_reference else float(reward_range[0]),
        ess=estimate.ess,
        hits_ess=estimate.hits_ess,
        mean_weight=estimate.mean_weight,
        pareto_k=estimate.pareto_k if estimate.pareto_status == "ok" else None,
        method=estimate.method,
        flags=list(estimate.flags),
    )
