"""Conditions under which a frozen log Z means something else are refused, with the reason and the fix."""

import dataclasses
import re

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig

from disa import DISAConfig
from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.lm.loading import load_tokenizer
from disa.tasks.reward_identity import reward_fingerprint
from disa.training.build import build_trainer
from disa.training.config import TrainingConfig
from disa.training.data import check_prompts
from disa.training.disa_config import _REFUSED, _UNREAD

OTHER_VALUE = {
    "top_p": 0.9,
    "top_k": 50,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "generation_kwargs": {"typical_p": 0.9},
    "sync_ref_model": True,
    "mask_truncated_completions": True,
    "use_liger_kernel": True,
    "disable_dropout": False,
    "neftune_noise_alpha": 5.0,
    "vllm_importance_sampling_correction": True,
    "torch_compile": True,
}


def config(tmp_path, **changes):
    arguments = {"inverse_temperature": 4.0, **trainer_arguments(bf16=False, log_every=1)}
    return DISAConfig(output_dir=str(tmp_path), **arguments | changes)


def test_every_refused_setting_is_tried():
    assert OTHER_VALUE.keys() == _REFUSED.keys()


@pytest.mark.parametrize(("name", "value"), OTHER_VALUE.items(), ids=OTHER_VALUE.keys())
def test_a_setting_that_breaks_log_z_s_meaning_is_refused(name, value, tmp_path):
    neutral, reason = _REFUSED[name]
    message = re.escape(f"DISAConfig: {name}={value} is refused: {reason}. Fix: use {name}={neutral}")
    with pytest.raises(DisaError, match=f"^{message}$"):
        config(tmp_path, **{name: value})
    assert getattr(config(tmp_path, **{name: neutral}), name) == neutral


UNREAD_VALUES = {
    "loss_type": "grpo",
    "epsilon": 0.1,
    "epsilon_high": 0.28,
    "delta": 4.0,
    "importance_sampling_level": "sequence",
    "scale_rewards": "batch",
    "multi_objective_aggregation": "normalize_then_sum",
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "entropy_coef_min": 0.001,
    "entropy_coef_max": 0.5,
    "entropy_coef_delta": 0.01,
    "entropy_target": 0.3,
    "top_entropy_quantile": 0.2,
    "off_policy_mask_threshold": 0.5,
    "use_bias_correction_kl": False,
    "router_aux_loss_coef": 0.01,
    "sapo_temperature_neg": 1.5,
    "sapo_temperature_pos": 1.5,
    "vespo_k_pos": 3.5,
    "vespo_lambda_pos": 3.5,
    "vespo_k_neg": 3.5,
    "vespo_lambda_neg": 3.5,
}


def test_every_setting_that_no_balance_loss_reads_is_tried():
    assert UNREAD_VALUES.keys() == set(_UNREAD)


@pytest.mark.parametrize(("name", "value"), UNREAD_VALUES.items(), ids=UNREAD_VALUES.keys())
def test_a_setting_of_grpo_s_loss_is_refused_instead_of_ignored(name, value, tmp_path):
    default = GRPOConfig.__dataclass_fields__[name].default
    message = (
        re.escape(f"DISAConfig: {name}={value} would change nothing")
        + ".*"
        + re.escape(f"expected its default {default}. Fix: leave {name} out")
    )
    with pytest.raises(DisaError, match=message):
        config(tmp_path, **{name: value})
    assert getattr(config(tmp_path, **{name: default}), name) == default


def test_trl_s_beta_is_the_reciprocal(tmp_path):
    assert config(tmp_path).beta == 0.25
    assert config(tmp_path, beta=0.25).beta == 0.25
    # Zero is TRL's default and stands for "not given".
    assert config(tmp_path, beta=GRPOConfig.__dataclass_fields__["beta"].default).beta == 0.25


def test_a_conflicting_trl_beta_is_refused_with_the_right_one(tmp_path):
    with pytest.raises(DisaError, match=r"beta=4.0 conflicts with inverse_temperature=4.0: .* reciprocal, 0.25.*Fix: "):
        config(tmp_path, beta=4.0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_an_inverse_temperature_that_is_no_positive_number_is_refused(value, tmp_path):
    with pytest.raises(DisaError, match=f"inverse_temperature is {value}, expected a number above 0.*Fix: "):
        config(tmp_path, inverse_temperature=value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "mean"}, "baseline='mean', expected 'anchored' or 'none'"),
        ({"offline_share": 1.0}, r"offline_share=1.0, expected a number in \[0, 1\)"),
        ({"offline_share": -0.1}, r"offline_share=-0.1, expected a number in \[0, 1\)"),
        ({"baseline_prior_strength": -1.0}, "baseline_prior_strength=-1.0, expected a number of at least 0"),
    ],
)
def test_other_values_out_of_range_are_refused(changes, message, tmp_path):
    with pytest.raises(DisaError, match=message):
        config(tmp_path, **changes)


OTHER_CONDITION = {
    "temperature": 0.7,
    "max_completion_length": 6,
    "stop_token_ids": (0,),
    "reward": "another/1",
    "inverse_temperature": 3.0,
    "task": "another:1",
    "tokenizer": "0" * 16,
    "reference": "0" * 16,
    "chat_template": "0" * 16,
    "tools": "0" * 16,
}


def test_every_condition_of_the_fingerprint_is_tried(small_run):
    assert OTHER_CONDITION.keys() == small_run.anchor.fingerprint.as_dict().keys()


@pytest.mark.parametrize("field", OTHER_CONDITION)
def test_an_anchor_estimated_under_another_condition_is_refused_by_name(field, small_run, tmp_path):
    anchor = small_run.anchor_for(**{field: OTHER_CONDITION[field]})
    with pytest.raises(DisaError, match=f"anchor does not fit: {field} is .*, the anchor was estimated for .*Fix: "):
        small_run.trainer(tmp_path, parts={"anchor": anchor})


@pytest.mark.parametrize("field", OTHER_CONDITION)
def test_offline_training_refuses_an_anchor_of_another_condition_as_well(field, small_run):
    parts = small_run.inputs(
        prompt_ids={}, trajectories=[], anchor=small_run.anchor_for(**{field: OTHER_CONDITION[field]})
    )
    with pytest.raises(DisaError, match=f"anchor does not fit: {field} is .*, the anchor was estimated for .*Fix: "):
        build_trainer("disa_forward", parts)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("temperature", {"temperature": 0.7}),
        ("max_completion_length", {"max_completion_length": 6}),
        ("inverse_temperature", {"inverse_temperature": 3.0}),
    ],
)
def test_a_trainer_with_another_setting_is_refused_by_name(field, changes, small_run, tmp_path):
    with pytest.raises(DisaError, match=f"anchor does not fit: {field} is {changes[field]}"):
        small_run.trainer(tmp_path, **changes)


def test_another_tokenizer_reward_or_stop_token_is_refused(small_run, tmp_path):
    tokenizer = load_tokenizer(small_run.reference)
    tokenizer.add_tokens(["colour"])
    with pytest.raises(DisaError, match="anchor does not fit: tokenizer"):
        small_run.trainer(tmp_path, parts={"processing_class": tokenizer})
    assert isinstance(tokenizer, PreTrainedTokenizerFast)

    def reward(completions, **columns):
        return [0.0] * len(completions)

    with pytest.raises(DisaError, match="anchor does not fit: reward is .*reward:"):
        small_run.trainer(tmp_path, parts={"reward_funcs": [reward]})


def test_a_reward_s_fingerprint_is_its_own_or_its_source_s():
    def first(completions, **columns):
        return [0.0] * len(completions)

    def second(completions, **columns):
        return [1.0] * len(completions)

    second.__qualname__ = first.__qualname__
    assert reward_fingerprint([first], [1.0]) == reward_fingerprint([first], [1.0])
    assert reward_fingerprint([first], [1.0]) != reward_fingerprint([second], [1.0])
    assert reward_fingerprint([first], [1.0]) != reward_fingerprint([first], [0.5])
    second.fingerprint = "mine/2"
    assert reward_fingerprint([second, second], [1.0, 0.5]) == "mine/2+0.5*mine/2"


def test_a_prompt_without_log_z_is_refused(small_run, tmp_path):
    stranger = dict(small_run.rows[0]) | {"prompt_id": "stranger"}
    rows = Dataset.from_list([*small_run.rows, stranger])
    with pytest.raises(DisaError, match=r"no log Z for prompt stranger; the anchor holds 9 prompts.*Fix: "):
        small_run.trainer(tmp_path, parts={"train_dataset": rows})
    with pytest.raises(DisaError, match="no log Z for prompt stranger"):
        small_run.trainer(tmp_path, parts={"eval_dataset": rows})


@pytest.mark.parametrize("column", ["prompt_id", "task"])
def test_a_missing_column_is_named(column, small_run, tmp_path):
    with pytest.raises(DisaError, match=f"column '{column}' is missing, found .*Fix: "):
        small_run.trainer(tmp_path, parts={"train_dataset": small_run.rows.remove_columns(column)})


USER, SYSTEM = {"role": "user", "content": "?"}, {"role": "system", "content": "Be brief."}
UNLIKE_PROMPTS = {
    "another system prompt": (
        [[SYSTEM, USER], [SYSTEM | {"content": "Be verbose."}, USER]],
        "prompt id-1 is messages with system prompt 'Be verbose.', expected messages with system prompt 'Be brief.'",
    ),
    "no system prompt": (
        [[SYSTEM, USER], [USER]],
        "prompt id-1 is messages with system prompt none, expected messages",
    ),
    "an example in front": (
        [[USER, {"role": "assistant", "content": "!"}, USER]],
        "prompt id-0 has messages of user, assistant, user, expected one of user",
    ),
}


@pytest.mark.parametrize(("prompts", "message"), UNLIKE_PROMPTS.values(), ids=UNLIKE_PROMPTS)
def test_prompts_that_the_fingerprint_does_not_describe_are_refused(prompts, message, small_run, tmp_path):
    rows = Dataset.from_list([{"prompt_id": f"id-{i}", "task": "t:1", "prompt": p} for i, p in enumerate(prompts)])
    with pytest.raises(DisaError, match=f"train_dataset or eval_dataset: {message}.*Fix: "):
        small_run.trainer(tmp_path, parts={"train_dataset": rows})


def test_evaluation_prompts_of_another_form_are_refused(small_run, tmp_path):
    asked = Dataset.from_list([dict(row) | {"prompt": [USER]} for row in small_run.rows])
    with pytest.raises(DisaError, match="is messages with system prompt none, expected text as before it.*Fix: "):
        small_run.trainer(tmp_path, parts={"eval_dataset": asked})


def test_prompts_of_one_form_differ_in_the_question_only():
    for context in ([], [SYSTEM]):
        other = [USER] if context else [SYSTEM, USER]
        prompts = [[*context, USER | {"content": str(i)}] for i in range(3)]
        alike, mixed = (
            Dataset.from_list([{"prompt_id": "id", "prompt": p} for p in rows]) for rows in (prompts, [*prompts, other])
        )
        check_prompts([alike, alike])
        with pytest.raises(DisaError, match="prompt id "):
            check_prompts([alike, mixed])


def test_offline_trajectories_are_given_exactly_where_they_have_a_share(small_run, tmp_path):
    in_memory = dataclasses.replace(small_run.anchor, path=None)  # beside a folder lie trajectories of its own
    with pytest.raises(DisaError, match="offline_share is 0.5, but offline trajectories are missing.*Fix: "):
        small_run.trainer(tmp_path, parts={"anchor": in_memory}, offline_share=0.5)
    with pytest.raises(DisaError, match="offline_share is 0.0, but offline trajectories are given.*Fix: "):
        small_run.trainer(tmp_path, parts={"offline": small_run.offline()})


@pytest.mark.parametrize(
    ("field", "refused", "allowed"),
    [
        ("offline_share", 1.0, 0.99),
        ("offline_share", -0.01, 0.0),
        ("inverse_temperature", 0.0, 0.5),
        ("value_samples", 0, 1),
    ],
)
def test_a_recipe_has_the_bounds_of_the_trainer(field, refused, allowed):
    assert getattr(TrainingConfig(**{field: allowed}), field) == allowed
    with pytest.raises(ValueError, match=field):
        TrainingConfig(**{field: refused})
