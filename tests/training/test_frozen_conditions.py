"""Nothing that log Z depends on changes unseen: each fault is refused where it is made, and the guard alone sees it."""

import dataclasses
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from peft import AdaptionPromptConfig, IA3Config, LoraConfig, PeftModel, PromptTuningConfig, VeraConfig, get_peft_model
from small_trainer import GENERATIONS, PROMPTS, RecordingTrainer
from test_loss_of_a_step import log_probs
from trl.trainer.callbacks import SyncRefModelCallback

from disa import Anchor
from disa.errors import DisaError
from disa.lm.digests import weights_digest
from disa.lm.loading import load_model, load_tokenizer, trainable_model
from disa.training import reference
from disa.training.build import build_trainer
from disa.training.run import TaskReward
from small_architectures import small_architecture

LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def adapted(folder, **changes):
    """The model with adapters that change what it writes, as trained ones do."""
    torch.manual_seed(0)
    return get_peft_model(trainable_model(folder), LoraConfig(**LORA | {"init_lora_weights": False} | changes))


def adapter_folder(small_run, tmp_path):
    adapted(small_run.reference).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


# 1. Policies with adapters of their own


def test_a_policy_with_trained_adapters_starts_from_them_and_is_compared_with_the_given_reference(small_run, tmp_path):
    parts = {"model": adapted(small_run.reference), "reference": small_run.reference}
    found = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts=parts, max_steps=2)
    found.train()
    inputs, _ = found.losses[0]
    log_ref = (inputs["ref_per_token_logps"].double() * inputs["completion_mask"]).sum(dim=1)
    expected = log_probs(load_model(small_run.reference).double(), inputs, temperature=1.0)
    torch.testing.assert_close(log_ref, expected, rtol=0, atol=1e-4)  # float32 sums of some 7 tokens
    assert abs(found.state.log_history[0]["kl_to_reference"]) > 0.1  # the adapters count in the policy
    assert list(found.accelerator.unwrap_model(found.model).peft_config) == ["default"]


def test_without_a_reference_trained_adapters_are_refused(small_run, tmp_path):
    with pytest.raises(DisaError, match="adapters of its own, and the reference may be .*Fix: give reference="):
        small_run.trainer(tmp_path, parts={"model": adapted(small_run.reference)})


def test_adapters_that_are_not_trainable_are_refused(small_run, tmp_path):
    model = PeftModel.from_pretrained(trainable_model(small_run.reference), adapter_folder(small_run, tmp_path))
    with pytest.raises(DisaError, match="none of its parameters is trainable.*is_trainable=True"):
        small_run.trainer(tmp_path, parts={"model": model, "reference": small_run.reference})


def test_new_adapters_on_top_of_trained_ones_are_refused(small_run, tmp_path):
    parts = {"model": adapted(small_run.reference), "peft_config": LoraConfig(**LORA), "reference": small_run.reference}
    with pytest.raises(DisaError, match="it has adapters, and peft_config asks for new ones"):
        small_run.trainer(tmp_path, parts=parts)


def test_an_adapter_s_folder_is_no_reference_and_no_model(small_run, tmp_path):
    folder = adapter_folder(small_run, tmp_path)
    with pytest.raises(DisaError, match="a folder of adapters, expected a whole model.*merge"):
        load_model(folder)
    parts = {"model": trainable_model(small_run.reference), "reference": folder}
    with pytest.raises(DisaError, match="a folder of adapters, expected a whole model"):
        small_run.trainer(tmp_path, parts=parts)


def test_adapters_loaded_into_a_plain_model_are_in_its_digest_and_a_peft_model_s_are_not(small_run, tmp_path):
    base = load_model(small_run.reference)
    assert weights_digest(adapted(small_run.reference)) == weights_digest(base)
    base.load_adapter(str(adapter_folder(small_run, tmp_path)))
    assert weights_digest(base) != weights_digest(load_model(small_run.reference))


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]),
        LoraConfig(**LORA, modules_to_save=["lm_head"]),
    ],
    ids=["IA3", "VeRA", "LoRA and a whole layer"],
)
def test_other_kinds_of_adapters_train_and_leave_the_reference_where_it_is(config, small_run, tmp_path):
    found = small_run.trainer(tmp_path, parts={"peft_config": config}, max_steps=3, learning_rate=0.05)
    found.train()
    assert weights_digest(found.reference_model) == small_run.anchor.fingerprint.reference
    moved = [line["kl_to_reference"] for line in found.state.log_history if "kl_to_reference" in line]
    assert abs(moved[0]) < 1e-5 < abs(moved[-1])


def test_adapters_in_front_of_the_prompt_are_refused_with_the_reason(small_run, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(trainable_model(small_run.reference), config)
    beside = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1)
    for parts in (
        {"model": model, "reference": small_run.reference},
        {"peft_config": config},
        {"peft_config": beside},
        {"model": get_peft_model(trainable_model(small_run.reference), beside), "reference": small_run.reference},
    ):
        with pytest.raises(DisaError, match="tokens in front of the prompt or beside it"):
            small_run.trainer(tmp_path, parts=parts)


# 2. References that training would move


def test_adapters_with_weights_of_the_base_in_training_are_refused(small_run, tmp_path):
    model = adapted(small_run.reference)
    model.get_base_model().get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(DisaError, match="1 weights of the reference would be trained, model.embed_tokens.weight first"):
        small_run.trainer(tmp_path, parts={"model": model, "reference": small_run.reference})


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_adapters_that_train_biases_of_the_base_are_refused(bias):
    model = get_peft_model(small_architecture("qwen2"), LoraConfig(**LORA, bias=bias))
    handler = SimpleNamespace(callbacks=[])
    stub = SimpleNamespace(model=model, ref_model=None, accelerator=Accelerator(cpu=True), callback_handler=handler)
    with pytest.raises(DisaError, match=r"6 weights of the reference would be trained, .*bias first.*bias='none'"):
        reference.check_frozen(stub)


def test_a_callback_that_changes_the_reference_is_refused(small_run, tmp_path):
    with pytest.raises(DisaError, match="SyncRefModelCallback would change the reference"):
        small_run.trainer(tmp_path, parts={"callbacks": [SyncRefModelCallback(ref_model=None, accelerator=None)]})


def test_a_reference_that_shares_weights_with_the_policy_is_refused(small_run, tmp_path):
    found = small_run.trainer(tmp_path)
    found.ref_model.model.norm.weight = found.accelerator.unwrap_model(found.model).model.norm.weight
    with pytest.raises(DisaError, match="1 weights of the reference would be trained, model.norm.weight first"):
        reference.check_frozen(found)


# 3. Prompts


def test_edited_prompts_under_the_same_ids_are_refused(small_run, tmp_path):
    rows = small_run.rows.map(lambda row: {"prompt": row["prompt"][:-1]})
    with pytest.raises(DisaError, match="prompt .*token ids have digest .* log Z was estimated for"):
        small_run.trainer(tmp_path, parts={"train_dataset": rows})


def test_a_template_that_renders_other_prompts_later_is_refused_in_the_step(small_run, tmp_path):
    found = small_run.trainer(tmp_path)
    found._tokenize_prompts, inner = (
        lambda prompts: (lambda ids, *rest: ([i[:-1] for i in ids], *rest))(*inner(prompts)),
        found._tokenize_prompts,
    )
    found.remove_callback(next(c for c in found.callback_handler.callbacks if type(c).__name__ == "ReferenceGuard"))
    with pytest.raises(DisaError, match="token ids have digest"):
        found.train()


def test_an_anchor_s_probes_are_frozen_with_it(run_copy):
    _, run_dir = run_copy
    path = run_dir / "5_anchor" / "probes.parquet"
    anchor = Anchor.load(run_dir / "5_anchor")
    assert set(anchor.probes) == set(anchor.estimates)
    assert sum(probe.completion_ids is not None for probe in anchor.probes.values()) >= 4
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DisaError, match=r"probes.parquet is not the one that was frozen"):
        Anchor.load(run_dir / "5_anchor")


# 4. Rewards


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30, 1.5, -0.5])
def test_a_reward_outside_the_anchor_s_range_stops_the_step_before_the_weights_move(value, small_run, tmp_path):
    class Faulty(TaskReward):
        def __call__(self, completions, **columns):
            return [value, *super().__call__(completions, **columns)[1:]]

    found = small_run.trainer(tmp_path, parts={"reward_funcs": [Faulty(small_run.task)]})
    before = [p.clone() for p in found.model.parameters()]
    with pytest.raises(DisaError, match=r"a reward is .*, expected a number in \[0, 1\]"):
        found.train()
    assert all(torch.equal(a, b) for a, b in zip(before, found.model.parameters(), strict=True))


def test_a_completion_that_one_of_two_functions_leaves_undecided_is_not_in_the_loss(small_run, tmp_path):
    class Undecided(TaskReward):
        __name__ = "undecided"

        def __call__(self, completions, **columns):
            return [None] * len(completions)

    name = small_run.task.reward_fingerprint
    parts = {
        "reward_funcs": [TaskReward(small_run.task), Undecided(small_run.task)],
        "anchor": small_run.anchor_for(reward=f"0.5*{name}+0.5*{name}"),
    }
    found = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts=parts, reward_weights=[0.5, 0.5])
    found.train()
    assert found.losses[0][1] == 0.0 and found.losses[0][0]["raw_reward"].isnan().all()


# 5. Dropout


@pytest.mark.parametrize("where", ["adapters", "attention"])
def test_dropout_is_off_so_that_log_pi_is_the_sampler_s(where, small_run, tmp_path):
    model = trainable_model(small_run.reference)
    parts = {"model": model}
    if where == "adapters":
        parts["peft_config"] = LoraConfig(**LORA, lora_dropout=0.5, init_lora_weights=False)
    else:
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
    found = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts=parts)
    found.train()
    inputs, _ = found.losses[0]
    log_pi, _ = found.sequence_log_probs(found.model.train(), inputs)
    again, _ = found.sequence_log_probs(found.model.train(), inputs)
    assert torch.equal(log_pi, again)


# 6. Undecided rewards and micro-batches


def test_the_gradient_of_a_step_with_undecided_rewards_does_not_depend_on_how_it_is_cut(small_run, tmp_path):
    class Some(TaskReward):
        def __call__(self, completions, **columns):
            rewards = super().__call__(completions, **columns)
            return [
                None if len(c) % 3 == 0 or i < 5 else r
                for i, (c, r) in enumerate(zip(completions, rewards, strict=True))
            ]

    losses, undecided = [], []
    for parts in (1, 3):
        found = small_run.trainer(
            tmp_path,
            trainer_class=RecordingTrainer,
            parts={"reward_funcs": [Some(small_run.task)]},
            per_device_train_batch_size=PROMPTS * GENERATIONS // parts,
            gradient_accumulation_steps=parts,
        )
        found.train()
        losses.append(sum(loss for _, loss in found.losses))
        undecided.append([int(inputs["raw_reward"].isnan().sum()) for inputs, _ in found.losses])
    assert len(set(undecided[1])) > 1  # or any division would do
    # float32 log-probabilities in batches of other sizes.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# 7. and 8. Settings


def test_a_policy_given_by_its_folder_is_float32_whatever_else_is_asked_of_it(small_run, tmp_path):
    trainable_model(small_run.reference).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    load_tokenizer(small_run.reference).save_pretrained(tmp_path / "half")
    parts = {"model": str(tmp_path / "half"), "reference": small_run.reference}
    found = small_run.trainer(tmp_path, parts=parts, model_init_kwargs={"attn_implementation": "sdpa"})
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}


def test_a_reference_that_is_not_the_base_of_new_adapters_is_refused(small_run, tmp_path):
    parts = {"peft_config": LoraConfig(**LORA), "reference": small_run.proposal}
    with pytest.raises(DisaError, match="with adapters the reference is the base model, whose digest is"):
        small_run.trainer(tmp_path, parts=parts)


def test_group_means_with_one_completion_in_evaluation_are_refused(small_run, tmp_path):
    with pytest.raises(DisaError, match="flagged='group' needs groups, but num_generations_eval is 1"):
        small_run.config(tmp_path, flagged="group", num_generations_eval=1)


# The guard alone


@pytest.fixture
def unchecked(monkeypatch):
    """Switch the specific checks off: only the guard is left."""
    monkeypatch.setattr(reference, "_check_own_adapters", lambda *args: None)
    monkeypatch.setattr("disa.training.balance_trainer.check_frozen", lambda trainer: None)
    monkeypatch.setattr(Anchor, "verify_prompts", lambda *args: None)
    monkeypatch.setattr("disa.training.shared_prompt_trainer.without_dropout", lambda model: None)
    monkeypatch.setattr(PeftModel, "delete_adapter", lambda *args: None, raising=False)


OFF = "log pi_ref of the anchor's own trajectories is off by .* nats per token"


def test_the_guard_sees_a_copy_of_trained_adapters_that_stands_for_the_reference(small_run, tmp_path, unchecked):
    found = small_run.trainer(tmp_path, parts={"model": adapted(small_run.reference)})
    assert "ref" in found.accelerator.unwrap_model(found.model).peft_config
    with pytest.raises(DisaError, match=OFF):
        found.train()


def test_the_guard_sees_adapters_that_cannot_move(small_run, tmp_path, unchecked):
    model = PeftModel.from_pretrained(trainable_model(small_run.reference), adapter_folder(small_run, tmp_path))
    with pytest.raises(DisaError, match=OFF):
        small_run.trainer(tmp_path, parts={"model": model}).train()


def test_the_guard_sees_a_reference_that_drifts_at_the_next_checkpoint(small_run, tmp_path, unchecked):
    model = adapted(small_run.reference, init_lora_weights=True)
    model.get_base_model().get_input_embeddings().weight.requires_grad_(True)
    parts = {"model": model, "reference": small_run.reference}
    found = small_run.trainer(tmp_path, parts=parts, max_steps=4, save_strategy="steps", save_steps=2)
    with pytest.raises(DisaError, match="step 2: the reference changed in training"):
        found.train()


def test_the_guard_sees_a_reference_that_drifted_at_the_end_where_there_is_no_checkpoint(
    small_run, tmp_path, unchecked
):
    found = small_run.trainer(tmp_path, max_steps=2)
    found.ref_model.model.norm.weight = found.accelerator.unwrap_model(found.model).model.norm.weight
    with pytest.raises(DisaError, match="step 2: the reference changed in training"):
        found.train()


def test_the_guard_sees_edited_prompts(small_run, tmp_path, unchecked):
    rows = small_run.rows.map(lambda row: {"prompt": row["prompt"][:-1]})
    with pytest.raises(DisaError, match=OFF):
        small_run.trainer(tmp_path, parts={"train_dataset": rows}).train()


def test_the_guard_sees_dropout(small_run, tmp_path, unchecked):
    model = trainable_model(small_run.reference)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(DisaError, match="log pi in training mode, against sampling's, is off by .*dropout"):
        small_run.trainer(tmp_path, parts={"model": model}).train()


def test_the_guard_looks_again_on_resuming(small_run, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    small_run.trainer(tmp_path, **settings).train()
    probes = {
        k: p if p.log_ref is None else dataclasses.replace(p, log_ref=p.log_ref + 1)
        for k, p in small_run.anchor.probes.items()
    }
    parts = {"anchor": dataclasses.replace(small_run.anchor, probes=probes)}
    with pytest.raises(DisaError, match=OFF):
        small_run.trainer(tmp_path, parts=parts, **settings).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_the_guard_lets_an_untouched_reference_pass_with_full_weights_and_with_adapters(small_run, tmp_path):
    for parts in ({}, {"peft_config": LoraConfig(**LORA)}):
        found = small_run.trainer(tmp_path, parts=parts, max_steps=2, save_strategy="steps", save_steps=1)
        found.train()
        assert found.state.global_step == 2


def test_the_guard_tries_stored_trajectories_where_no_prompt_has_a_probe(small_run, tmp_path, unchecked, monkeypatch):
    ids = {row["prompt_id"] for row in small_run.rows}
    probes = {
        k: dataclasses.replace(p, completion_ids=None, log_ref=None) if k in ids else p
        for k, p in small_run.anchor.probes.items()
    }
    anchor = dataclasses.replace(small_run.anchor, probes=probes)
    small_run.trainer(tmp_path, parts={"anchor": anchor}).train()
    rows = small_run.rows.map(lambda row: {"prompt": row["prompt"][:-1]})
    with pytest.raises(DisaError, match=OFF):
        small_run.trainer(tmp_path, parts={"anchor": anchor, "train_dataset": rows}).train()


def test_an_anchor_without_trajectories_of_the_prompts_says_so(small_run, tmp_path, caplog):
    anchor = dataclasses.replace(small_run.anchor, probes={}, path=None)
    small_run.trainer(tmp_path, parts={"anchor": anchor}).train()
    assert "the anchor has no trajectory of these prompts to try the reference on" in caplog.text


# Offline training


OFFLINE = pytest.mark.parametrize("method", ["disa_forward", "disa_offline_balance"])


def offline_trainer(small_run, tmp_path, method, **changes):
    arguments = {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the squared residual on offline trajectories
        return build_trainer(method, small_run.inputs(arguments=arguments, **changes))


@OFFLINE
def test_offline_training_starts_at_the_reference(method, small_run, tmp_path):
    found = offline_trainer(small_run, tmp_path, method)
    found.train()
    assert found.state.global_step == 1


@OFFLINE
def test_offline_training_refuses_edited_prompts(method, small_run, tmp_path):
    ids = {name: row[:-1] for name, row in small_run.inputs().prompt_ids.items()}
    with pytest.raises(DisaError, match="prompt or chat template changed"):
        offline_trainer(small_run, tmp_path, method, prompt_ids=ids)


@OFFLINE
def test_the_start_guard_of_offline_training_sees_edited_prompts_and_dropout(method, small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Anchor, "verify_prompts", lambda *args: None)
    start = "log pi of the policy before its first step, against the stored log pi_ref, is off by"
    ids = {name: row[:-1] for name, row in small_run.inputs().prompt_ids.items()}
    with pytest.raises(DisaError, match=start):
        offline_trainer(small_run, tmp_path, method, prompt_ids=ids).train()
    monkeypatch.setattr("disa.training.offline_trainer.without_dropout", lambda model: None)
    shared = small_run.inputs().shared
    for layer in shared["model"].model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(DisaError, match=start):
        offline_trainer(small_run, tmp_path, method, shared=shared).train()


def test_dropout_is_off_in_offline_training_unless_it_is_asked_for(small_run, tmp_path):
    shared = small_run.inputs().shared
    for layer in shared["model"].model.layers:
        layer.self_attn.attention_dropout = 0.5
    found = offline_trainer(small_run, tmp_path, "disa_forward", shared=shared)
    assert [layer.self_attn.attention_dropout for layer in found.model.model.layers] == [0.0] * len(
        found.model.model.layers
    )
    found.train()
