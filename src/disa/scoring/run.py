"""Score every trajectory under both models and by its reward, part by part."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from disa.errors import DisaError
from disa.lm.log_probs import sequence_log_probs
from disa.lm.models import FrozenModels, Models
from disa.lm.sampling_config import SamplingConfig, encode_prompt
from disa.lm.shared_prefix import why_not_shared
from disa.proposals.blends import Blends, blends_of
from disa.proposals.config import ProposalsConfig
from disa.runs.folders import StageFolder, write_json
from disa.runs.parquet_rows import StoredRows, read_rows
from disa.runs.parts import Advance, blocks_of, make_parts
from disa.runs.records import SOURCES, LogProb, Prompt, ScoredTrajectory, Trajectory
from disa.runs.stage import Stage, share_text
from disa.scoring.config import ScoringConfig
from disa.scoring.parity import check_parity, parity_report
from disa.tasks import Task
from disa.tasks.checked_rewards import checked_rewards

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 2

MOSTLY_UNDECIDED = 0.1
"""Share of undecided rewards beyond which a run warns."""

PARITY_FLOAT32, PARITY_BFLOAT16 = 1e-3, 0.02
"""Default bounds of sampler against scorer, nats per token."""

_log = logging.getLogger(__name__)


def scoring_stage(
    config: ScoringConfig,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: Callable[[], list[Prompt]],
    drawn: StageFolder,
    drawn_by: ProposalsConfig,
    *,
    proposal_here: bool,
    number: int = 0,
) -> Stage:
    """Describe the stage that scores the first draws, or those of a round.

    ``proposal_here`` is False where only a server or a file speaks for the proposal.
    """

    def work(stage: StageFolder) -> None:
        rows = drawn.stored_rows(Trajectory)
        roles = (SOURCES if proposal_here else SOURCES[:1]) if rows or not number else ()
        tokenizer, known = models.tokenizer(), prompts()
        blends = blends_of(drawn_by, sampling, task, known, tokenizer)
        here = models.load(blends.roles if blends and roles else roles, config.compute, together=blends is not None)
        run_scoring(stage, config, sampling, task, known, rows, here, tokenizer, blends, verdict_needed=not number)

    identity = {"scoring": config.identity(), "reward": task.reward_fingerprint}
    folder = f"3_scoring/round-{number}" if number else "3_scoring"
    return Stage("scoring", folder, VERSION, identity, {"proposals": drawn}, work, by="parts", says=_says)


def _says(folder: StageFolder) -> list[str]:
    rows = folder.thin_rows(ScoredTrajectory)
    rewards = {source: [r.reward for r in rows if r.reward is not None and r.source == source] for source in SOURCES}
    means = ", ".join(f"{source} {sum(found) / len(found):.3f}" for source, found in rewards.items() if found)
    undecided = len(rows) - len(decided_rows(rows))
    lines = [
        f"mean reward: {means or 'none'}" + (f"; undecided {share_text(undecided, len(rows))}" if undecided else "")
    ]
    if len(distinct := {reward for found in rewards.values() for reward in found}) == 1:
        lines.append(
            f"warning: every reward is {distinct.pop():g}, so the target is the reference itself; check the verifier, "
            "the form of the prompts and the length limit"
        )
    if undecided > MOSTLY_UNDECIDED * len(rows):
        lines.append(f"warning: more than {MOSTLY_UNDECIDED:.0%} of the rewards are undecided and left out")
    return lines


def run_scoring(
    stage: StageFolder,
    config: ScoringConfig,
    sampling: SamplingConfig,
    task: Task,
    prompts: list[Prompt],
    trajectories: Sequence[Trajectory],
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    blends: Blends | None = None,
    *,
    verdict_needed: bool = True,
) -> None:
    """Write one part per block of trajectories, beside any other processes that do the same, then the parity report.

    Raises DisaError where a reward is unusable, or sampler and scorer disagree beyond the bound. ``blends`` are what
    the proposal's trajectories were drawn from, where that is not the model ``proposal`` itself. Without
    ``verdict_needed`` there may be no reward at all, as in a small round of further draws.
    """
    by_id = {p.prompt_id: p for p in prompts}
    drawn_for: Iterable[str] = (t.prompt_id for t in trajectories)
    if isinstance(trajectories, StoredRows):
        drawn_for = trajectories.column("prompt_id")
    if stray := next((prompt_id for prompt_id in drawn_for if prompt_id not in by_id), None):
        raise DisaError(
            f"a trajectory belongs to prompt {stray}, which is not among the tasks' prompts",
            where="scoring, rows of 2_proposals",
            fix="rerun the proposals stage for these tasks",
        )
    encoded = {p.prompt_id: encode_prompt(tokenizer, p.prompt, sampling) for p in prompts}
    models = FrozenModels.of(models)
    plain = {source: reason for source, model in models.shapes().items() if (reason := why_not_shared(model))}
    for source, reason in plain.items():
        _log.warning("scoring: %s computes prompts once per completion, not once per prompt: %s", source, reason)
    blocks = blocks_of(range(len(trajectories)), config.trajectories_per_part, digits=8)
    reference, *others = models.distinct() or SOURCES[:1]
    last = others[0] if others else reference
    score = functools.partial(_log_probs, models, encoded, config, sampling)

    def read(key: str, block: Sequence[int]) -> list[Trajectory]:
        return list(trajectories[block[0] : block[-1] + 1])

    def under_reference(block: list[Trajectory], advance: Advance) -> list[LogProb]:
        return [LogProb(float(log_p)) for log_p in score(reference, block, advance)]

    # One model is in memory at a time: the reference is done with all parts before the proposal begins.
    known = stage.inner("reference") if others and not blends else None
    if known:
        make_parts(known, blocks, len, under_reference, LogProb, "scoring: under the reference", read=read)

    def read_scored(key: str, block: Sequence[int]) -> tuple[list[Trajectory], list[float] | None]:
        log_ref = [row.log_p for row in read_rows(known.part(key), LogProb)] if known else None
        return read(key, block), log_ref

    def judge(part: tuple[list[Trajectory], list[float] | None]) -> _Judged:
        block, _ = part
        if task.judged_when_drawn:
            return *part, [t.judged for t in block]
        asked, texts = [by_id[t.prompt_id] for t in block], [t.completion for t in block]
        return *part, checked_rewards(task, asked, texts, [t.completion_ids for t in block])

    def make(part: _Judged, advance: Advance) -> list[ScoredTrajectory]:
        block, log_ref, rewards = part
        if blends:
            how = {"tokens_per_batch": config.tokens_per_batch, "advance": advance}
            pairs = blends.log_probs(models, block, encoded, temperature=sampling.temperature, **how)
            log_ref, log_proposal = pairs.T.tolist()
        else:
            scores = score(last, block, advance).tolist()
            # Without the proposal's weights there is only what its sampler said, and that of its own draws.
            said = [t.log_sampler if t.source == "proposal" else None for t in block]
            log_ref, log_proposal = log_ref or scores, scores if "proposal" in models else said
        return [_scored(*row) for row in zip(block, log_ref, log_proposal, rewards, strict=True)]

    make_parts(stage, blocks, len, make, ScoredTrajectory, "scoring: trajectories", read=read_scored, first=judge)
    rows = stage.thin_rows(ScoredTrajectory)
    if verdict_needed and rows and not decided_rows(rows):
        raise DisaError(
            f"the reward is None, undecided, for all {len(rows)} completions",
            where=f"task {task.name}, field reward",
            fix=f"return a number in {list(task.reward_range)} wherever a completion can be judged",
        )
    bound = config.parity_bound or (PARITY_BFLOAT16 if "bfloat16" in models.precisions() else PARITY_FLOAT32)
    report = parity_report(rows, bound, SOURCES if blends else tuple(models))
    write_json(stage.path / "parity.json", report)
    check_parity(report)
    undecided = len(rows) - len(decided_rows(rows))
    stage.finish(trajectories=len(rows), undecided=undecided, parity=report, prompts_not_shared=plain)


def decided_rows(rows: Sequence[ScoredTrajectory]) -> list[ScoredTrajectory]:
    """The rows with a verdict: an undecided one is no failure, and no estimate may take it for one."""
    return [row for row in rows if row.reward is not None]


_Judged = tuple[list[Trajectory], "list[float] | None", "list[float | None]"]
"""Trajectories of a part, their log pi_ref where it is known by now, and their rewards."""


def _scored(
    trajectory: Trajectory, log_ref: float, log_proposal: float | None, reward: float | None
) -> ScoredTrajectory:
    known = {field.name: getattr(trajectory, field.name) for field in dataclasses.fields(trajectory)}
    return ScoredTrajectory(**known, log_ref=log_ref, log_proposal=log_proposal, reward=reward)


def _log_probs(
    models: FrozenModels,
    encoded: dict[str, list[int]],
    config: ScoringConfig,
    sampling: SamplingConfig,
    role: str,
    block: Sequence[Trajectory],
    advance: Advance,
) -> np.ndarray:
    return sequence_log_probs(
        models[role],
        [encoded[t.prompt_id] for t in block],
        [t.completion_ids for t in block],
        own=[t.tool_mask for t in block],
        temperature=sampling.temperature,
        tokens_per_batch=config.tokens_per_batch,
        advance=advance,
    )
