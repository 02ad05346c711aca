"""Draw every prompt's trajectories, part by part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.lm.models import FrozenModels, Models
from disa.lm.sampler import draw_rows, uniforms
from disa.lm.sampling_config import SamplingConfig, check_context, decode_completion, encode_prompt
from disa.proposals.blends import BlendEngine, blends_of
from disa.proposals.config import DrawPlan, ProposalsConfig
from disa.proposals.engines import make_engines
from disa.proposals.imported import VERSION as IMPORTER_VERSION
from disa.proposals.imported import ImportedTrajectories, files_digest
from disa.proposals.protocol import Engine, Job, job_seed
from disa.proposals.tool_answers import varied_answers
from disa.runs.folders import StageFolder
from disa.runs.parts import Advance, blocks_of, make_parts
from disa.runs.records import SOURCES, Prompt, Trajectory
from disa.runs.stage import Stage, share_text
from disa.tasks import Task

VERSION = 1

MOSTLY_CUT = 0.5
"""Share of cut completions beyond which a run warns."""

Drawn = tuple[Prompt, str]
"""A prompt and a source to draw it from."""


def proposals_stage(
    config: ProposalsConfig,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: Callable[[], list[Prompt]],
    inputs: dict[str, StageFolder],
) -> Stage:
    """Describe the stage that draws the first trajectories of all prompts."""
    identity: dict[str, Any] = {"proposals": config.identity(), "sampling": sampling.identity()}
    identity |= models.identity(*SOURCES)
    identity |= {"files": files_digest(config.files), "importer": IMPORTER_VERSION} if config.files else {}

    def work(stage: StageFolder) -> None:
        draw_trajectories(stage, config, sampling, task, models, prompts())

    return Stage("proposals", "2_proposals", VERSION, identity, inputs, work, by="parts", says=_says)


def _says(folder: StageFolder) -> list[str]:
    rows = folder.thin_rows(Trajectory)
    drawn = {source: [row.truncated for row in rows if row.source == source] for source in SOURCES}
    cut = {source: share_text(sum(marks), len(marks)) for source, marks in drawn.items() if marks}
    lines = ["cut at the length limit: " + ", ".join(f"{source} {part}" for source, part in cut.items())]
    varied, places = varied_answers(rows)
    if varied:
        lines.append(
            f"warning: tools or environments answered the same words differently at {varied} of {places} places that "
            "several trajectories came to; no policy reaches the target then, and kl_to_target settles at what is left"
        )
    return lines + [
        f"warning: more than {MOSTLY_CUT:.0%} of the {source}'s completions are cut: the target is one over unfinished "
        "texts; raise sampling.max_completion_length, or check prompt form and stop tokens"
        for source, marks in drawn.items()
        if sum(marks) > MOSTLY_CUT * len(marks)
    ]


def draw_trajectories(
    stage: StageFolder,
    config: ProposalsConfig,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: list[Prompt],
    plan: DrawPlan | None = None,
) -> None:
    """Draw by the recipe's engine; models that it runs elsewhere are not loaded here."""
    tokenizer = models.tokenizer()
    engines = dict(models.engines) or make_engines(config, sampling, prompts, models.paths, tokenizer)
    here = models.load([role for role in SOURCES if role not in engines], config.compute)
    if blends := blends_of(config, sampling, task, prompts, tokenizer):
        here = models.load(blends.roles, config.compute, together=True)
        engines["proposal"] = BlendEngine(blends, here, tokenizer, sampling, config)
    run_proposals(stage, config, sampling, prompts, here, tokenizer, plan, engines)


def run_proposals(
    stage: StageFolder,
    config: ProposalsConfig,
    sampling: SamplingConfig,
    prompts: list[Prompt],
    models: Mapping[str, PreTrainedModel],
    tokenizer: Tokenizer,
    plan: DrawPlan | None = None,
    engines: Mapping[str, Engine] | None = None,
) -> None:
    """Write one part per block of prompts, beside any other processes that do the same.

    ``plan`` is by default the configuration's counts, from 0 on, and all that an import has. A source that an engine
    draws needs no model.
    """
    engines, models = engines or {}, FrozenModels.of(models)
    if plan is None:
        plan = {p.prompt_id: {s: range(n) for s, n in _counts(p, config, engines).items()} for p in prompts}

    def count(block: Sequence[Drawn]) -> int:
        return sum(len(plan[p.prompt_id][source]) for p, source in block)

    def make(block: Sequence[Drawn], advance: Advance) -> list[Trajectory]:
        rows = []
        for batch in draw_block(block, plan, config, sampling, models, tokenizer, engines):
            rows += batch
            advance(len(batch))
        return rows

    of_both = blocks_of(prompts, config.prompts_per_part)
    blocks = {key: [(p, source) for source in SOURCES for p in block] for key, block in of_both.items()}
    loaded = {id(engine) for engine in engines.values()}
    if (len(loaded) if config.engine == "vllm" else len(models.distinct())) > 1:
        # They take turns in memory: all parts of the one come before those of the other.
        of_one = [(f"{key}-{source}", block, source) for source in SOURCES for key, block in of_both.items()]
        blocks = {key: [(p, source) for p in block] for key, block, source in of_one}
    with contextlib.ExitStack() as held:
        for engine in engines.values():
            held.callback(engine.close)
        title = "proposals: trajectories"
        total = make_parts(stage, blocks, count, make, Trajectory, title)
    stage.finish(trajectories=total, prompts=len(prompts), **_engine_facts(stage, config, engines))


def _counts(prompt: Prompt, config: ProposalsConfig, engines: Mapping[str, Engine]) -> dict[str, int]:
    counts = config.counts(prompt.split)
    held = {s: e.count(prompt.prompt_id) for s, e in engines.items() if isinstance(e, ImportedTrajectories)}
    return counts | held


def _engine_facts(stage: StageFolder, config: ProposalsConfig, engines: Mapping[str, Engine]) -> dict[str, Any]:
    """What the manifest says of engines: which one, and what it left unsaid."""
    if not engines:
        return {}
    rows = stage.thin_rows(Trajectory)
    return {
        "engine": config.engine,
        "retokenised": sum(row.retokenised for row in rows),
        "without_log_prob": sum(row.log_sampler is None for row in rows),
        "left_out": sum(e.left_out for e in engines.values() if isinstance(e, ImportedTrajectories)),
    }


def draw_block(
    block: Sequence[Drawn],
    plan: DrawPlan,
    config: ProposalsConfig,
    sampling: SamplingConfig,
    models: FrozenModels,
    tokenizer: Tokenizer,
    engines: Mapping[str, Engine],
) -> Iterator[list[Trajectory]]:
    """Trajectories of some prompts, in batches; each is determined by its own seed alone."""
    prompts = {p.prompt_id: p for p, _ in block}.values()
    encoded = {p.prompt_id: encode_prompt(tokenizer, p.prompt, sampling) for p in prompts}
    for prompt in prompts:
        for model_config in models.configs():
            check_context(model_config, encoded[prompt.prompt_id], sampling, where=f"prompt {prompt.prompt_id}")
    for source in SOURCES:
        jobs = [(p.prompt_id, draw) for p, s in block if s == source for draw in plan[p.prompt_id][source]]
        for start in range(0, len(jobs), config.batch_size):
            batch = jobs[start : start + config.batch_size]
            if source in engines:
                jobs_of = [Job(i, encoded[i], n, job_seed(config.seed, i, source, n)) for i, n in batch]
                draws = engines[source].draw(jobs_of)
            else:
                limit = sampling.max_completion_length
                numbers = np.stack([uniforms(config.seed, i, source, n, limit) for i, n in batch])
                rows = [encoded[i] for i, _ in batch]
                draws = draw_rows(models[source], tokenizer, rows, numbers, temperature=sampling.temperature)
            yield [
                Trajectory(
                    prompt_id=prompt_id,
                    draw=draw,
                    source=source,
                    completion=decode_completion(tokenizer, d.completion_ids),
                    completion_ids=d.completion_ids,
                    truncated=d.truncated,
                    log_sampler=d.log_prob,
                    retokenised=d.retokenised,
                    tool_mask=d.tool_mask,
                    judged=d.reward,
                )
                for (prompt_id, draw), d in zip(batch, draws, strict=True)
            ]
