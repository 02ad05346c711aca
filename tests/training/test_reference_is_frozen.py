"""The reference in the loss is the one that log Z was estimated for, whatever happens to the policy."""

import pytest
import torch
from peft import LoraConfig
from small_trainer import RecordingTrainer
from test_loss_of_a_step import log_probs

from disa import DISATrainer
from disa.errors import DisaError
from disa.lm.digests import weights_digest
from disa.lm.loading import load_model, load_tokenizer, trainable_model
from disa.objectives.forward_projection import target_weight
from disa.objectives.trajectory_balance import trajectory_balance_residual

LORA = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")


def edited(path):
    """A model changed in memory: no folder holds these weights."""
    model = trainable_model(path)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model


def assert_log_ref_is_the_reference_s(trainer, small_run):
    inputs, _ = trainer.losses[-1]
    found = (inputs["ref_per_token_logps"].double() * inputs["completion_mask"]).sum(dim=1)
    expected = log_probs(load_model(small_run.reference).double(), inputs, temperature=1.0)
    # float32 against float64 sums of some 7 tokens.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_after_some_steps_the_reference_s_log_probs_are_still_the_reference_s(small_run, tmp_path, adapters):
    parts = {"peft_config": LORA} if adapters else {}
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts=parts, max_steps=4, learning_rate=0.05)
    assert (trainer.ref_model is None) == adapters
    trainer.train()
    assert_log_ref_is_the_reference_s(trainer, small_run)
    assert trainer.fingerprint(small_run.rows) == small_run.anchor.fingerprint
    # The policy has moved away from it.
    moved = [line["kl_to_reference"] for line in trainer.state.log_history if "kl_to_reference" in line]
    assert abs(moved[0]) < 1e-5 < abs(moved[-1])
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained) == adapters


def test_a_policy_edited_in_memory_is_compared_with_the_given_reference(small_run, tmp_path):
    parts = {"model": edited(small_run.proposal), "reference": small_run.reference}
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts=parts)
    trainer.train()
    assert_log_ref_is_the_reference_s(trainer, small_run)
    assert abs(trainer.state.log_history[0]["kl_to_reference"]) > 1e-3


@pytest.mark.parametrize("given", [str, lambda path: path], ids=["text", "path"])
def test_a_policy_given_by_its_folder_is_compared_with_the_given_reference(small_run, tmp_path, given):
    parts = {"model": str(small_run.proposal), "reference": given(small_run.reference)}
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts=parts)
    trainer.train()
    assert_log_ref_is_the_reference_s(trainer, small_run)


def test_a_policy_edited_in_memory_is_compared_with_the_folder_it_came_from_where_no_reference_is_given(
    small_run, tmp_path
):
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts={"model": edited(small_run.reference)})
    trainer.train()
    assert_log_ref_is_the_reference_s(trainer, small_run)


def refused(small_run, tmp_path, **parts):
    with pytest.raises(DisaError, match="anchor does not fit: reference is .*Fix: ") as caught:
        small_run.trainer(tmp_path, parts=parts)
    return str(caught.value)


def test_another_reference_is_refused(small_run, tmp_path):
    message = refused(small_run, tmp_path, model=trainable_model(small_run.proposal))
    assert weights_digest(load_model(small_run.proposal)) in message
    assert small_run.anchor.fingerprint.reference in message


def test_a_changed_reference_folder_is_refused(small_run, tmp_path):
    changed = edited(small_run.reference)
    changed.save_pretrained(tmp_path / "changed")
    load_tokenizer(small_run.reference).save_pretrained(tmp_path / "changed")
    refused(small_run, tmp_path, model=trainable_model(small_run.reference), reference=tmp_path / "changed")


def test_with_adapters_changed_base_weights_are_refused(small_run, tmp_path):
    # The base model with adapters off is the reference then, so an edit of it is an edit of the reference.
    refused(small_run, tmp_path, model=edited(small_run.reference), peft_config=LORA)


def test_one_changed_weight_is_enough(small_run, tmp_path):
    model = trainable_model(small_run.reference)
    with torch.no_grad():
        weight = next(model.parameters())
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(torch.inf))
    refused(small_run, tmp_path, model=model, peft_config=LORA)


class TrainsTheReference(DISATrainer):
    """A faulty engine that trains the reference along with the policy."""

    def compute_loss(self, model, inputs, **kwargs):
        shape = inputs["ref_per_token_logps"].shape
        inputs["ref_per_token_logps"] = torch.zeros(shape, requires_grad=True)
        return super().compute_loss(model, inputs, **kwargs)


class TrainsLogZ(DISATrainer):
    """A faulty engine that trains log Z along with the policy."""

    def compute_loss(self, model, inputs, **kwargs):
        inputs["log_z"] = inputs["log_z"].clone().requires_grad_(True)
        return super().compute_loss(model, inputs, **kwargs)


@pytest.mark.parametrize(
    ("faulty", "message"),
    [(TrainsTheReference, "log_ref requires grad.*frozen"), (TrainsLogZ, "log_z requires grad.*frozen")],
)
def test_what_is_frozen_may_not_require_grad(faulty, message, small_run, tmp_path):
    with pytest.raises(ValueError, match=message):
        small_run.trainer(tmp_path, trainer_class=faulty).train()


def test_frozen_inputs_of_the_objectives_may_not_require_grad():
    x = torch.zeros(3)
    for name in ("log_z", "log_ref"):
        inputs = {"log_pi": x, "log_ref": x, "reward": x, "log_z": x} | {name: x.clone().requires_grad_(True)}
        with pytest.raises(ValueError, match=f"{name} requires grad.*frozen"):
            trajectory_balance_residual(**inputs, beta=1.0)
    with pytest.raises(ValueError, match="log_z requires grad.*frozen"):
        target_weight(x, x, x.clone().requires_grad_(True), beta=1.0, cap=8.0)


def test_rewards_enter_without_a_gradient_and_log_z_does_not_change_in_training(small_run, tmp_path):
    before = dict(small_run.anchor.estimates)
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, max_steps=3, learning_rate=0.05)
    trainer.train()
    assert dict(small_run.anchor.estimates) == before
    for inputs, _ in trainer.losses:
        assert not inputs["raw_reward"].requires_grad
        assert not inputs["log_z"].requires_grad
    with pytest.raises(TypeError):
        small_run.anchor.estimates["p"] = None
