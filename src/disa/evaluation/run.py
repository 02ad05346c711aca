"""Sample one model on the evaluation prompts, judge and score the samples, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from disa.evaluation.config import EvaluationConfig
from disa.lm.loading import effective_dtype
from disa.lm.log_probs import sequence_log_probs
from disa.lm.sampler import sample, uniforms
from disa.lm.sampling import SamplingConfig, check_context, decode_completion, encode_prompt
from disa.runs.folders import StageFolder
from disa.runs.parts import Advance, blocks_of, make_parts
from disa.runs.records import EvaluationRecord, Prompt
from disa.tasks import Task
from disa.tasks.checked_rewards import checked_rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 2


def evaluation_prompts(config: EvaluationConfig, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts that get evaluated: all of the other splits, then some training ones."""
    others = [p for p in prompts if p.split != "train"]
    train = [p for p in prompts if p.split == "train"][: config.train_prompts]
    return [*others, *train]


def run_evaluation(
    stage: StageFolder,
    name: str,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    task: Task,
    prompts: list[Prompt],
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write the evaluation records of one model, beside any other processes that do the same.

    Parameters
    ----------
    name : str
        The model's name in the records.
    model, reference : PreTrainedModel
        The same object where the reference itself is evaluated.
    """
    prompts = evaluation_prompts(config, prompts)
    total = make_parts(
        stage,
        blocks_of(prompts, config.prompts_per_part),
        lambda block: len(block) * config.samples_per_prompt,
        lambda block, advance: _evaluate_block(
            name, block, config, sampling, task, model, reference, tokenizer, advance
        ),
        EvaluationRecord,
        f"evaluation: {name}",
    )
    stage.finish(model=name, prompts=len(prompts), samples=total)


def _evaluate_block(
    name: str,
    block: Sequence[Prompt],
    config: EvaluationConfig,
    sampling: SamplingConfig,
    task: Task,
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    advance: Advance,
) -> list[EvaluationRecord]:
    encoded = {p.prompt_id: encode_prompt(tokenizer, p.prompt, sampling) for p in block}
    for prompt in block:
        check_context(model.config, encoded[prompt.prompt_id], sampling, where=f"prompt {prompt.prompt_id}")
    jobs = [(p, draw) for p in block for draw in range(config.samples_per_prompt)]
    draws, compute = [], effective_dtype(config.compute)
    for start in range(0, len(jobs), config.batch_size):
        batch = jobs[start : start + config.batch_size]
        numbers = np.stack(
            [
                uniforms(config.seed, p.prompt_id, "evaluation", draw, sampling.max_completion_length)
                for p, draw in batch
            ]
        )
        draws += sample(model, tokenizer, [encoded[p.prompt_id] for p, _ in batch], numbers, sampling, compute)
        advance(len(batch))
    prompt_ids, completion_ids = [encoded[p.prompt_id] for p, _ in jobs], [d.completion_ids for d in draws]
    # Both sides of a log ratio come from the scorer: the sampler's rounding would not cancel.
    log_pi, log_ref = (
        sequence_log_probs(m, prompt_ids, completion_ids, temperature=sampling.temperature, compute=compute)
        for m in (model, reference)
    )
    completions = [decode_completion(tokenizer, d.completion_ids) for d in draws]
    rewards = checked_rewards(task, [p for p, _ in jobs], completions)
    rows = []
    for i, ((prompt, draw), d, completion) in enumerate(zip(jobs, draws, completions, strict=True)):
        rows.append(
            EvaluationRecord(
                model=name,
                prompt_id=prompt.prompt_id,
                split=prompt.split,
                draw=draw,
                completion=completion,
                truncated=d.truncated,
                reward=rewards[i],
                mode=task.mode(prompt, completion),
                log_pi=float(log_pi[i]),
                log_ref=float(log_ref[i]),
            )
        )
    return rows
