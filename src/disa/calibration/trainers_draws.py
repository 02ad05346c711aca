"""Trajectories by TRL's own data path, where tools or environments answer while the model writes."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed
from trl import GRPOConfig

from disa.calibration.config import CalibrationConfig
from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.lm.loading import load_model
from disa.lm.models import Origin
from disa.lm.sampler import Draw
from disa.proposals.protocol import Job
from disa.tasks.checked_rewards import check_range
from disa.tasks.tools import Tools
from disa.training.shared_prompt_trainer import SharedPromptTrainer


class TrainersDraws:
    """Engine of one source: a trainer that draws and judges, and never trains.

    A batch's random numbers, those of tools and environments included, follow from the seeds of its jobs.

    Parameters
    ----------
    model : str, Path or PreTrainedModel
    row_of : callable
        From a prompt's id to its row.
    reward_funcs, reward_processing_classes
        As for the trainer.
    """

    def __init__(
        self,
        model: Origin,
        tokenizer: Any,
        row_of: Callable[[str], Mapping[str, Any]],
        reward_funcs: Any,
        reward_processing_classes: Any,
        tools: Tools,
        args: CalibrationConfig,
    ) -> None:
        self._model, self._tokenizer, self._row_of, self._tools, self._args = model, tokenizer, row_of, tools, args
        self._rewards = {"reward_funcs": reward_funcs, "reward_processing_classes": reward_processing_classes}
        self._trainer: SharedPromptTrainer | None = None

    def draw(self, jobs: Sequence[Job]) -> list[Draw]:
        """One trajectory per job, judged."""
        if self._trainer is None:
            self._trainer = self._sampler(self._row_of(jobs[0].prompt_id))
        trainer = self._trainer
        seed = hashlib.sha256(repr([job.seed for job in jobs]).encode()).digest()
        rows = [dict(self._row_of(job.prompt_id)) for job in jobs]
        with torch.no_grad(), _seeded(int.from_bytes(seed[:4], "big") >> 1):
            batch = trainer._generate_and_score_completions(rows)
        trainer._metrics["eval"].clear()
        return [self._drawn(i, job, batch) for i, job in enumerate(jobs)]

    def close(self) -> None:
        """Free the model."""
        self._trainer = None

    def _drawn(self, i: int, job: Job, batch: Mapping[str, torch.Tensor]) -> Draw:
        assert self._trainer is not None
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        if prompt != list(job.prompt_ids):
            raise DisaError(
                f"it was drawn from a rendered prompt of {len(prompt)} tokens, expected the {len(job.prompt_ids)} that "
                "the chat template gives, token for token",
                where=f"prompt {job.prompt_id}",
                fix="let an environment's reset say the same for the same row, and a rollout_func render prompts as "
                "the trainer does (trainer._tokenize_prompts)",
            )
        kept = batch["completion_mask"][i].bool()
        ids = batch["completion_ids"][i][kept].tolist()
        own = batch["tool_mask"][i][kept] if "tool_mask" in batch else torch.ones(len(ids), dtype=torch.long)
        log_prob = None
        if "sampling_per_token_logps" in batch:
            said = batch["sampling_per_token_logps"][i][kept].double()
            log_prob = float(torch.where(own.bool(), said, 0.0).sum())
        cut = ids[-1] not in self._trainer.eos_token_ids
        return Draw(ids, cut, log_prob, tool_mask=own.tolist(), reward=self._reward(i, job))

    def _reward(self, i: int, job: Job) -> float | None:
        assert self._trainer is not None
        reward = float(self._trainer.raw_rewards()[i])
        low, high = self._args.reward_range
        check_range(
            reward,
            (low, high),
            where=f"reward_funcs, prompt {job.prompt_id}",
            fix="set CalibrationConfig.reward_range to the smallest and largest weighted sum of rewards",
        )
        return None if math.isnan(reward) else min(max(reward, low), high)

    def _sampler(self, row: Mapping[str, Any]) -> SharedPromptTrainer:
        own = self._args
        config = GRPOConfig(
            output_dir=str(Path(tempfile.gettempdir()) / "disa-draws"),  # nothing is written
            **trainer_arguments(False, log_every=1),  # the model computes in what it is held in
            temperature=own.temperature,
            max_completion_length=own.max_completion_length,
            chat_template_kwargs=own.chat_template_kwargs,
            max_tool_calling_iterations=own.max_tool_calling_iterations,
            reward_weights=own.reward_weights,
            per_device_train_batch_size=2,
            num_generations=2,
            num_generations_eval=1,
            per_device_eval_batch_size=own.batch_size,
        )
        model = load_model(self._model, own.compute) if isinstance(self._model, str | Path) else self._model
        sampler = SharedPromptTrainer(
            model,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]}]),
            processing_class=self._tokenizer,
            **self._rewards,
            **self._tools.as_given(),
        )
        sampler.model.eval()
        return sampler


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed everything that draws, and leave the caller's generators as they were."""
    own = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(own[0])
            np.random.set_state(own[1])
