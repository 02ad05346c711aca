"""Make the reference and the proposal by supervised training on demonstrations."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from disa.errors import DisaError
from disa.lm.hf_trainer import last_checkpoint, save_trained_model, trainer_arguments
from disa.lm.loading import effective_precision, load_tokenizer, trainable_model
from disa.lm.sampling_config import SamplingConfig, check_context, encode_prompt
from disa.runs import processes
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt
from disa.runs.stage import Stage
from disa.runs.step_log import StepLog
from disa.tasks import Task
from disa.warmup.base_model import base_model
from disa.warmup.config import WarmupConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 2


def warmup_stage(config: WarmupConfig, sampling: SamplingConfig, task: Task, tasks: StageFolder) -> Stage:
    """Describe the stage that makes the reference, and a proposal, from the prompts of ``warmup``."""

    def work(stage: StageFolder) -> None:
        prompts = [row for row in tasks.rows(Prompt) if row.split == "warmup"]
        run_warmup(stage, config, task, prompts, sampling)

    identity = {"warmup": config.identity(), "sampling": sampling.identity()}
    return Stage("warmup", "warmup", VERSION, identity, {"tasks": tasks}, work, by="launch")


def run_warmup(
    stage: StageFolder, config: WarmupConfig, task: Task, prompts: list[Prompt], sampling: SamplingConfig
) -> None:
    """Train and save ``reference`` and, where configured, ``proposal`` in the stage's folder.

    The processes of one launch train together, each on its share of a batch, and the first one writes.
    """
    runs = ({"proposal": config.proposal} if config.proposal else {}) | {"reference": config.reference}
    for name, run in runs.items():
        if not (stage.path / name / "config.json").is_file():
            start = stage.path / "proposal" if run.start == "proposal" else None
            train_on_demonstrations(
                stage.path, name, run.steps, run.noise, config, task, prompts, sampling, start=start
            )
    if processes.rank() == 0:
        stage.finish(runs={name: run.model_dump() for name, run in runs.items()})


def train_on_demonstrations(
    folder: Path,
    name: str,
    steps: int,
    noise: float,
    config: WarmupConfig,
    task: Task,
    prompts: list[Prompt],
    sampling: SamplingConfig,
    *,
    start: Path | None,
) -> None:
    """Train on demonstrations and save the model in a folder; continue from the newest checkpoint.

    ``name`` is of the model's folder in it, of its checkpoints and its log; without ``start`` training starts from the
    base of the warm-up section.
    """
    if start is not None:
        model, tokenizer = trainable_model(start), load_tokenizer(start)
    else:
        model, tokenizer = base_model(config, task.alphabet)
    longest = max((encode_prompt(tokenizer, p.prompt, sampling) for p in prompts), key=len, default=[])
    check_context(model.config, longest, sampling, where="tasks")
    checkpoints, log = folder / f"checkpoints-{name}", StepLog(folder / f"{name}.jsonl", f"warm-up: {name}")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(checkpoints),
            max_steps=steps,
            per_device_train_batch_size=processes.share_of_process(config.batch_size, "warmup.batch_size"),
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 20),
            save_steps=max(1, steps // 4),
            save_total_limit=1,
            seed=config.seed,
            dataset_kwargs={"skip_prepare_dataset": True},
            **trainer_arguments(effective_precision(config.compute, model) == "bfloat16", config.log_every),
        ),
        train_dataset=demonstration_rows(task, prompts, tokenizer, sampling, config, noise),
        processing_class=tokenizer,
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)
    with closing(log):
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    save_trained_model(trainer, folder / name)
    processes.wait_for_all()


def demonstration_rows(
    task: Task,
    prompts: list[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    sampling: SamplingConfig,
    config: WarmupConfig,
    noise: float,
) -> Dataset:
    """Token ids and labels of the demonstrations; the loss sees the completion and its EOS only.

    A share ``noise`` of them, chosen at random per demonstration, is wrong on purpose. Those longer than the length
    limit are left out: the sampling law could not produce them. Raises DisaError where none is left.
    """
    rng = random.Random(config.seed)
    rows = []
    for prompt in prompts:
        prompt_ids = encode_prompt(tokenizer, prompt.prompt, sampling)
        for _ in range(config.demonstrations_per_prompt):
            text = task.demonstration(prompt, rng, noisy=rng.random() < noise)
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            if len(ids) <= sampling.max_completion_length:
                rows.append({"input_ids": prompt_ids + ids, "labels": [-100] * len(prompt_ids) + ids})
    if not rows:
        raise DisaError(
            f"no demonstration fits sampling.max_completion_length {sampling.max_completion_length}",
            where="warmup",
            fix="raise sampling.max_completion_length (the stop token counts), or ask for tasks.warmup_prompts",
        )
    return Dataset.from_list(rows)
