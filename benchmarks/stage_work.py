"""The work of the stages that run the model, on random models of any size, through the project's own code."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset

from disa import DISAConfig, DISATrainer
from disa.anchor import Anchor
from disa.lm.digests import chat_template_digest, tokenizer_digest, weights_digest
from disa.lm.hf_trainer import trainer_arguments
from disa.lm.loading import load_model, load_tokenizer, trainable_model
from disa.lm.log_probs import sequence_log_probs
from disa.lm.sampler import draw_tokens
from disa.lm.sampling_config import stop_token_ids
from disa.planning.model_shape import ModelShape
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate
from disa.training.trainer import reward_fingerprint
from paired import Seconds, timed
from scoring_speed import random_llama
from small_policy import last_step, reward, word_tokenizer

# Few tokens, so that in small models too the layers are most of the weights.
VOCABULARY = 1024
STAGES = ("proposals", "scoring", "training step")
_BETA, _TASK = 4.0, "stage-curves"


class Case(NamedTuple):
    """One model, and the completions that are drawn, scored and trained on."""

    hidden_size: int
    prompts: int
    prompt_length: int
    completions: int
    """Of each prompt."""
    length: int
    """Tokens of a completion."""


class Model:
    """A random model of one size in a folder of its own, as the stages find theirs."""

    def __init__(self, folder: Path, hidden_size: int) -> None:
        self.folder = folder / str(hidden_size)
        random_llama(VOCABULARY, hidden_size).save_pretrained(self.folder)
        word_tokenizer(VOCABULARY).save_pretrained(self.folder)
        self.loaded, self.tokenizer = load_model(self.folder), load_tokenizer(self.folder)
        shape = ModelShape.of(self.loaded)
        # The input embedding is a look-up and costs nothing that grows with it.
        self.weights = shape.parameters - shape.embedding

    def anchor(self, prompts: Sequence[str], length: int) -> Anchor:
        """Some log Z for each prompt: a step takes as long whatever it is."""
        fingerprint = Fingerprint(
            reference=weights_digest(self.loaded),
            tokenizer=tokenizer_digest(self.tokenizer),
            chat_template=chat_template_digest(self.tokenizer, conversational=False),
            temperature=1.0,
            max_completion_length=length,
            stop_token_ids=stop_token_ids(self.loaded, self.tokenizer),
            reward=reward_fingerprint([reward], [1.0]),
            inverse_temperature=_BETA,
            task=_TASK,
        )
        numbers = dict.fromkeys(("n", "n_reference", "mean_reward_reference", "ess", "hits_ess", "mean_weight"), 0)
        estimates = {
            p: PartitionEstimate(
                p, "train", _BETA / 2, 0.5, 0.0, _BETA, **numbers, pareto_k=None, method="given", flags=[]
            )
            for p in prompts
        }
        return Anchor(estimates, fingerprint, (0.0, 1.0), binary=True)


def works(model: Model, case: Case) -> dict[str, Callable[[], Seconds]]:
    """Each stage's work on one case. Without a stop token all completions have full length, and work is equal."""
    generator = torch.Generator().manual_seed(0)
    # Two steps' prompts: in training the first step warms up.
    prompts = torch.randint(2, VOCABULARY, (2 * case.prompts, case.prompt_length), generator=generator).tolist()
    rows = [prompt for prompt in prompts[: case.prompts] for _ in range(case.completions)]
    completions = torch.randint(2, VOCABULARY, (len(rows), case.length), generator=generator).tolist()
    numbers = torch.rand(len(rows), case.length, generator=generator, dtype=torch.float64)
    texts = [" ".join(f"w{i}" for i in prompt) for prompt in prompts]
    anchor = model.anchor(texts, case.length)
    dataset = Dataset.from_list([{"prompt": text, "prompt_id": text, "task": _TASK} for text in texts])

    def step() -> Seconds:
        with tempfile.TemporaryDirectory() as folder:
            config = DISAConfig(
                output_dir=folder,
                inverse_temperature=_BETA,
                max_steps=2,
                per_device_train_batch_size=len(rows),
                num_generations=case.completions,
                max_completion_length=case.length,
                learning_rate=1e-4,
                save_strategy="no",
                **trainer_arguments(bf16=False, log_every=1),
            )
            policy = trainable_model(model.folder)
            trainer = DISATrainer(policy, [reward], anchor, config, dataset, processing_class=model.tokenizer)
            trainer.eos_token_ids = []
            seconds = last_step(trainer)
        lengths = {line["completions/min_length"] for line in trainer.state.log_history if "loss" in line}
        if lengths != {case.length}:
            raise RuntimeError(f"completions of {sorted(lengths)} tokens where all should have {case.length}")
        return seconds

    return {
        "proposals": lambda: timed(lambda: draw_tokens(model.loaded, rows, numbers, [])),
        "scoring": lambda: timed(lambda: sequence_log_probs(model.loaded, rows, completions)),
        "training step": step,
    }
