"""A DISATrainer on the tiny run's reference and anchor, in pieces that a test can change."""

import dataclasses

from disa import Anchor, DISAConfig, DISATrainer
from disa.lm.hf_trainer import trainer_arguments
from disa.lm.loading import load_tokenizer, trainable_model
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, ScoredTrajectory
from disa.tasks import make_task
from disa.training.build import TrainerInputs
from disa.training.run import TaskReward, prompt_rows
from disa.training.stored import StoredTrajectories
from disa.training.trajectory_weights import target_weights

PROMPTS, GENERATIONS = 3, 4  # of one step


class SmallRun:
    """What training reads of a finished run."""

    def __init__(self, run_dir):
        self.recipe = load_recipe(run_dir.parent / "recipe.yaml")
        self.reference, self.proposal = run_dir / "warmup" / "reference", run_dir / "warmup" / "proposal"
        self.task = make_task(self.recipe.tasks)
        self.anchor = Anchor.load(run_dir / "5_anchor")
        self.prompts = read_rows(run_dir / "1_tasks" / "train.parquet", Prompt)
        self.trajectories = read_rows(run_dir / "3_scoring", ScoredTrajectory)
        self.rows = prompt_rows(self.prompts, self.task, self.recipe.sampling)

    def anchor_for(self, **fields):
        """The anchor, as if estimated under other conditions; without probes and run, scored under its own."""
        fingerprint = dataclasses.replace(self.anchor.fingerprint, **fields)
        return dataclasses.replace(self.anchor, fingerprint=fingerprint, probes={}, path=None)

    def offline(self, seed=0):
        """The training prompts' trajectories for the forward projection."""
        tokenizer = load_tokenizer(self.reference)
        prompt_ids = {p.prompt_id: tokenizer(p.prompt)["input_ids"] for p in self.prompts}
        rows = [row for row in self.trajectories if row.prompt_id in prompt_ids]
        return StoredTrajectories(rows, prompt_ids, target_weights(rows, self.anchor, cap=8.0), seed=seed)

    def inputs(self, **changes):
        """What ``build_trainer`` makes an offline trainer of; ``changes`` replace fields."""
        tokenizer = load_tokenizer(self.reference)
        prompt_ids = {p.prompt_id: tokenizer(p.prompt)["input_ids"] for p in self.prompts}
        settings = {
            "config": self.recipe.training,
            "sampling": self.recipe.sampling,
            "task": self.task,
            "prompt_ids": prompt_ids,
            "reference": self.reference,
            "anchor": self.anchor,
            "trajectories": [row for row in self.trajectories if row.prompt_id in prompt_ids],
            "arguments": {},
            "generation": {},
            "shared": {"model": trainable_model(self.reference), "processing_class": tokenizer},
            "dataset": self.rows,
            "reward": None,
        }
        return TrainerInputs(**settings | changes)

    def config(self, output_dir, **changes):
        settings = {
            "inverse_temperature": self.anchor.fingerprint.inverse_temperature,
            "max_steps": 1,
            "num_generations": GENERATIONS,
            "per_device_train_batch_size": PROMPTS * GENERATIONS,
            "gradient_accumulation_steps": 1,
            "max_completion_length": self.recipe.sampling.max_completion_length,
            "temperature": 1.0,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            # No clipping and no decay: gradients are compared, and a zero gradient must leave the weights alone.
            "max_grad_norm": 1e9,
            "weight_decay": 0.0,
            "save_strategy": "no",
            **trainer_arguments(bf16=False, log_every=1),
        }
        return DISAConfig(output_dir=str(output_dir), **settings | changes)

    def trainer(self, output_dir, *, trainer_class=DISATrainer, parts=None, **changes):
        """A trainer; ``parts`` replace its constructor's arguments, the other keywords its configuration's."""
        settings = {
            "model": trainable_model(self.reference),
            "reward_funcs": [TaskReward(self.task)],
            "anchor": self.anchor,
            "args": self.config(output_dir, **changes),
            "train_dataset": self.rows,
            "processing_class": load_tokenizer(self.reference),
        }
        return trainer_class(**settings | (parts or {}))


class RecordingTrainer(DISATrainer):
    """Keeps what goes into each loss and what comes out."""

    def __init__(self, *args, **kwargs):
        self.losses = []
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append((inputs, loss.item()))
        return loss
