"""Draw every prompt's trajectories, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.engine import progress_bar
from disa.proposals.config import ProposalsConfig
from disa.proposals.sampler import sample, uniforms
from disa.records import Prompt, Trajectory
from disa.rundir import StageFolder
from disa.sampling import SamplingConfig, check_context, decode_completion, encode_prompt

VERSION = 1

Plan = Mapping[str, Mapping[str, range]]
"""Prompt id and source to the numbers of the draws to make."""


def run_proposals(
    stage: StageFolder,
    config: ProposalsConfig,
    law: SamplingConfig,
    prompts: list[Prompt],
    models: dict[str, PreTrainedModel],
    tokenizer: Tokenizer,
    plan: Plan | None = None,
) -> None:
    """Write one part per block of prompts.

    Parameters
    ----------
    models : dict
        ``reference`` and ``proposal``; the same object twice where there is no separate proposal.
    plan : mapping, optional
        The draws to make of every prompt; by default the configuration's counts, from 0 on.
    """
    if plan is None:
        plan = {p.prompt_id: {s: range(n) for s, n in config.counts(p.split).items()} for p in prompts}
    blocks = {
        f"part-{start:06d}": prompts[start : start + config.prompts_per_part]
        for start in range(0, len(prompts), config.prompts_per_part)
    }
    sizes = {key: sum(len(r) for p in block for r in plan[p.prompt_id].values()) for key, block in blocks.items()}
    total = sum(sizes.values())
    stage.keep_parts(sizes)
    with progress_bar() as bar:
        task = bar.add_task("proposals: trajectories", total=total)
        for key, block in blocks.items():
            if not stage.part(key).is_file():
                rows = []
                for batch in draw_block(block, plan, config, law, models, tokenizer):
                    rows += batch
                    bar.advance(task, len(batch))
                stage.write_part(key, rows, Trajectory)
            else:
                bar.advance(task, sizes[key])
    stage.finish(trajectories=total, prompts=len(prompts))


def draw_block(
    prompts: list[Prompt],
    plan: Plan,
    config: ProposalsConfig,
    law: SamplingConfig,
    models: dict[str, PreTrainedModel],
    tokenizer: Tokenizer,
) -> Iterator[list[Trajectory]]:
    """Trajectories of some prompts, in batches; each is determined by its own seed alone."""
    encoded = {p.prompt_id: encode_prompt(tokenizer, p.prompt, law) for p in prompts}
    for prompt in prompts:
        for model in models.values():
            check_context(model, encoded[prompt.prompt_id], law, where=f"prompt {prompt.prompt_id}")
    for source in ("reference", "proposal"):
        jobs = [(p.prompt_id, draw) for p in prompts for draw in plan[p.prompt_id][source]]
        for start in range(0, len(jobs), config.batch_size):
            batch = jobs[start : start + config.batch_size]
            numbers = np.stack(
                [uniforms(config.seed, prompt_id, source, draw, law.max_completion_length) for prompt_id, draw in batch]
            )
            draws = sample(
                models[source], tokenizer, [encoded[prompt_id] for prompt_id, _ in batch], numbers, law, config.compute
            )
            yield [
                Trajectory(
                    prompt_id=prompt_id,
                    draw=draw,
                    source=source,
                    completion=decode_completion(tokenizer, d.completion_ids),
                    completion_ids=d.completion_ids,
                    truncated=d.truncated,
                    log_sampler=d.log_prob,
                )
                for (prompt_id, draw), d in zip(batch, draws, strict=True)
            ]
