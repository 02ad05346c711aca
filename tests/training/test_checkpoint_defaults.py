"""Generation defaults that a checkpoint brings along stay out of the completions it is trained on."""

import pytest
import torch
from peft import LoraConfig
from small_trainer import GENERATIONS, PROMPTS
from trl import GRPOConfig

from disa import DISATrainer
from disa.lm.hf_trainer import trainer_arguments
from disa.lm.loading import load_tokenizer, trainable_model
from disa.training.run import TaskReward
from disa.training.shared_prompt_trainer import SharedPromptTrainer

LORA = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
# Each would change what is drawn: the first as good as always to the likeliest token.
DEFAULTS = {"min_p": 0.999, "suppress_tokens": [5, 6], "no_repeat_ngram_size": 1, "temperature": 0.1, "top_k": 1}


def noting(trainer_class):
    """The trainer, keeping its first completions."""

    class Noting(trainer_class):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            self.completions = batch["completion_ids"]
            return batch

    return Noting


def disa(small_run, tmp_path, model, **parts):
    return small_run.trainer(tmp_path, trainer_class=noting(DISATrainer), parts={"model": model, **parts})


def grpo(small_run, tmp_path, model):
    args = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        num_generations=GENERATIONS,
        per_device_train_batch_size=PROMPTS * GENERATIONS,
        max_completion_length=small_run.recipe.sampling.max_completion_length,
        save_strategy="no",
        **trainer_arguments(bf16=False, log_every=1),
    )
    return noting(SharedPromptTrainer)(
        model=model,
        reward_funcs=[TaskReward(small_run.task)],
        args=args,
        train_dataset=small_run.rows,
        processing_class=load_tokenizer(small_run.reference),
    )


TRAINERS = {
    "disa": disa,
    "disa with adapters": lambda *parts: disa(*parts, peft_config=LORA),
    "grpo": grpo,
}


@pytest.mark.parametrize("make", TRAINERS.values(), ids=TRAINERS.keys())
def test_completions_are_those_of_the_same_model_without_defaults(make, small_run, tmp_path):
    drawn = []
    for defaults in ({}, DEFAULTS):
        model = trainable_model(small_run.reference)
        model.generation_config.update(**defaults)
        trainer = make(small_run, tmp_path, model)
        trainer.train()
        drawn.append(trainer.completions)
        # What the checkpoint recommends to its users stays with it.
        assert all(getattr(model.generation_config, name) == value for name, value in defaults.items())
    assert torch.equal(*drawn)
    assert len({tuple(row) for row in drawn[0].tolist()}) > PROMPTS
