"""What people give a trainer in Python: each works, or is refused at once with the reason and the way out."""

import functools

import pytest
import torch
from datasets import DatasetDict
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback
from trl import GRPOConfig

from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.lm.loading import load_tokenizer, trainable_model
from disa.lm.sampling_config import SamplingConfig, encode_prompt
from disa.runs.folders import StageFolder
from disa.tasks.reward_identity import reward_fingerprint
from disa.training import run
from disa.training.config import LoRAConfig, TrainingConfig
from disa.training.run import TaskReward


def test_prompts_in_their_own_order_train(small_run, tmp_path):
    found = small_run.trainer(tmp_path, shuffle_dataset=False, max_steps=3)
    found.train()
    assert found.state.global_step == 3


def test_fewer_prompts_than_a_step_are_refused_with_both_numbers(small_run, tmp_path):
    parts = {"train_dataset": small_run.rows.select(range(2))}
    with pytest.raises(DisaError, match="2 rows, expected at least the 3 distinct ones.*Fix: "):
        small_run.trainer(tmp_path, parts=parts, shuffle_dataset=False)


def test_rows_may_be_a_list_and_evaluation_rows_several_data_sets_by_name(small_run, tmp_path):
    parts = {"train_dataset": list(small_run.rows), "eval_dataset": {"few": small_run.rows.select(range(3))}}
    found = small_run.trainer(tmp_path, parts=parts, per_device_eval_batch_size=12)
    found.train()
    assert "eval_few_loss" in found.evaluate()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda rows: None, "train_dataset is NoneType, expected a datasets.Dataset or a list of rows"),
        (lambda rows: rows.to_iterable_dataset(), "train_dataset is IterableDataset, expected"),
        (lambda rows: DatasetDict(train=rows), r"train_dataset is DatasetDict, expected.*dataset\['train'\]"),
        (lambda rows: rows.select([]), "train_dataset has no rows"),
        (lambda rows: [], "train_dataset is list, expected|train_dataset has no rows"),
        (lambda rows: rows.remove_columns("prompt"), "column 'prompt' is missing"),
        (
            lambda rows: rows.remove_columns("prompt_id").add_column("prompt_id", list(range(len(rows)))),
            "prompt_id is 0, expected text, as in the anchor",
        ),
    ],
)
def test_other_rows_are_refused_by_what_they_are(rows, message, small_run, tmp_path):
    with pytest.raises(DisaError, match=message):
        small_run.trainer(tmp_path, parts={"train_dataset": rows(small_run.rows)})


def test_trl_s_own_configuration_is_refused_by_name(small_run, tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), **trainer_arguments(bf16=False, log_every=1))
    with pytest.raises(DisaError, match="args is GRPOConfig, expected DISAConfig.*Fix: "):
        small_run.trainer(tmp_path, parts={"args": args})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"anchor": None}, "anchor is NoneType, expected an Anchor or its folder.*Fix: give what disa.calibrate"),
        ({"reward_funcs": [3]}, "a reward function is 3, expected a function"),
        ({"model": "/none/such"}, "/none/such: no loadable Hugging Face model"),
    ],
)
def test_what_is_no_anchor_reward_or_model_is_refused_by_name(parts, message, small_run, tmp_path):
    with pytest.raises(DisaError, match=message):
        small_run.trainer(tmp_path, parts=parts)


def test_the_older_name_of_a_precision_is_the_precision(small_run, tmp_path):
    parts = {"model": str(small_run.reference)}
    found = small_run.trainer(tmp_path, parts=parts, model_init_kwargs={"torch_dtype": "float64"})
    assert found.model.dtype == torch.float64


def test_model_and_anchor_may_be_paths_and_the_tokenizer_is_the_model_s(small_run, tmp_path):
    parts = {"model": small_run.reference, "anchor": small_run.anchor.path, "processing_class": None}
    small_run.trainer(tmp_path, parts=parts).train()


def test_a_model_folder_without_a_tokenizer_is_named(small_run, tmp_path):
    trainable_model(small_run.reference).save_pretrained(tmp_path / "bare")
    parts = {"model": tmp_path / "bare", "processing_class": None}
    with pytest.raises(DisaError, match="bare: no loadable Hugging Face model or tokenizer"):
        small_run.trainer(tmp_path, parts=parts)


@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (1, 3), (3, 1)])
def test_one_completion_a_prompt_in_the_smallest_batches(batch, parts, small_run, tmp_path):
    settings = {"num_generations": 1, "per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
    found = small_run.trainer(tmp_path, max_steps=2, **settings)
    assert found.args.generation_batch_size == batch * parts
    found.train()
    assert found.state.global_step == 2


# Reward functions in every form that TRL takes


def plain(completions, bonus=0.0, **columns):
    """Rewards nothing."""
    return [bonus] * len(completions)


class Callable:
    def __init__(self, bonus):
        self.bonus = bonus

    def __call__(self, completions, **columns):
        return [self.bonus] * len(completions)


def made(bonus):
    def reward(completions, **columns):
        return [bonus] * len(completions)

    return reward


def from_a_notebook(code="def reward(completions, **columns):\n    return [0.0] * len(completions)"):
    names = {}
    exec(code, names)  # no file holds the source
    return names["reward"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(plain, bonus=0.5), functools.partial(plain, bonus=1.0)),
        (Callable(0.5), Callable(1.0)),
        (Callable(0.5).__call__, Callable(1.0).__call__),
        (made(0.5), made(1.0)),
        (plain, Callable(0.5)),
    ],
    ids=["partial", "callable object", "method", "closure", "function"],
)
def test_a_reward_s_identity_is_its_source_and_the_values_it_holds(one, other):
    assert reward_fingerprint([one], [1.0]) == reward_fingerprint([one], [1.0])
    assert reward_fingerprint([one], [1.0]) != reward_fingerprint([other], [1.0])


def test_a_reward_model_s_identity_is_its_weights(small_run):
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1
    )
    one, other = LlamaForSequenceClassification(config), LlamaForSequenceClassification(config)
    assert reward_fingerprint([one], [1.0]) != reward_fingerprint([other], [1.0])
    other.load_state_dict(one.state_dict())
    assert reward_fingerprint([one], [1.0]) == reward_fingerprint([other], [1.0])


@pytest.mark.parametrize("reward", [from_a_notebook(), made(torch.zeros(1)), Callable(object())])
def test_a_reward_that_cannot_be_told_from_another_is_asked_for_a_fingerprint(reward):
    with pytest.raises(DisaError, match="what reward function .* computes cannot be told.*attribute fingerprint"):
        reward_fingerprint([reward], [1.0])
    reward.fingerprint = "mine/1"
    assert reward_fingerprint([reward], [0.5]) == "0.5*mine/1"


def test_a_callable_object_and_a_partial_train(small_run, tmp_path):
    class Named(TaskReward):
        pass

    name = small_run.task.reward_fingerprint
    wrapped = functools.partial(TaskReward(small_run.task))
    wrapped.fingerprint = name
    parts = {"reward_funcs": [Named(small_run.task), wrapped]}
    parts["anchor"] = small_run.anchor_for(reward=f"0.5*{name}+0.5*{name}")
    small_run.trainer(tmp_path, parts=parts, reward_weights=[0.5, 0.5]).train()


# Settings


def test_target_modules_may_be_a_list():
    assert LoRAConfig(target_modules=["q_proj", "v_proj"]).target_modules == ("q_proj", "v_proj")
    assert LoRAConfig().target_modules == "all-linear"


def test_a_warm_up_longer_than_the_run_is_refused(small_run, tmp_path):
    with pytest.raises(DisaError, match="warmup_steps=4 is more than max_steps=2"):
        small_run.trainer(tmp_path, max_steps=2, warmup_steps=4)
    with pytest.raises(ValueError, match="warmup_steps 10 is more than grpo's 5 steps"):
        TrainingConfig(steps=20, steps_of={"grpo": 5}, warmup_steps=10)
    assert TrainingConfig(steps=5).warmup_steps == 10  # cut to the run where it is used


def test_a_prompt_may_hold_the_end_token_where_that_pads_too(small_run):
    tokenizer = load_tokenizer(small_run.reference)
    text = small_run.prompts[0].prompt
    with pytest.raises(DisaError, match="has a character the tokenizer does not know"):
        encode_prompt(tokenizer, text + "\N{SNOWMAN}", SamplingConfig())
    tokenizer.pad_token = tokenizer.eos_token
    ids = encode_prompt(tokenizer, text + tokenizer.eos_token, SamplingConfig())
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(("step", "kept"), [(1, "has no checkpoint yet"), (3, "goes on from checkpoint-2")])
def test_an_interrupted_training_says_what_is_kept(step, kept, small_run, tmp_path, monkeypatch):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise KeyboardInterrupt

    inner = run.build_trainer

    def build(method, inputs):
        trainer = inner(method, inputs)
        trainer.add_callback(Interrupt())
        return trainer

    monkeypatch.setattr(run, "build_trainer", build)
    stage = StageFolder(tmp_path, "6_training/disa", version=1, identity={}, inputs={})
    stage.begin()
    given = (small_run.task, small_run.prompts, small_run.reference, small_run.anchor)
    with pytest.raises(KeyboardInterrupt, match=f"finished stages are kept, training {kept}"):
        run.run_training(stage, "disa", small_run.recipe.training, small_run.recipe.sampling, *given, [])
