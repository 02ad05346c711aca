"""Frozen weights of a bfloat16 checkpoint stay in bfloat16 in training; what is trained is float32; nothing drifts."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from disa.lm import loading
from disa.lm.digests import base_parameters, weights_digest
from disa.lm.hf_trainer import save_trained_model
from disa.lm.loading import load_model, load_tokenizer, trainable_model
from disa.lm.merged_adapters import merged_adapters, unmoved_base

LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
BFLOAT16, FLOAT32 = {torch.bfloat16}, {torch.float32}


@pytest.fixture
def half(small_run, tmp_path, monkeypatch):
    """The reference as a bfloat16 checkpoint, on a machine that has bfloat16."""
    monkeypatch.setattr(loading, "_emulates_bfloat16", lambda: False)
    folder = tmp_path / "half"
    trainable_model(small_run.reference).to(torch.bfloat16).save_pretrained(folder)
    load_tokenizer(small_run.reference).save_pretrained(folder)
    return str(folder)


def trainer_on(small_run, tmp_path, half, **parts):
    anchor = small_run.anchor_for(reference=weights_digest(load_model(half)))
    return small_run.trainer(
        tmp_path, parts={"model": half, "anchor": anchor} | parts, bf16=True, save_strategy="steps"
    )


def test_adapters_train_in_float32_over_a_base_in_bfloat16_that_is_the_reference(small_run, tmp_path, half):
    found = trainer_on(small_run, tmp_path, half, peft_config=LORA)
    model = found.accelerator.unwrap_model(found.model)
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for _, p in base_parameters(model)} == BFLOAT16
    assert {p.dtype for p in before.values()} == FLOAT32
    found.train()  # the guard takes the reference's digest again
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert weights_digest(model) == weights_digest(load_model(half))
    # What is saved is base plus update in float32: most of an update is finer than bfloat16.
    exact = copy.deepcopy(model).float().merge_and_unload().state_dict()
    save_trained_model(found, tmp_path / "saved")
    saved = load_model(tmp_path / "saved", "float32").state_dict()
    assert all(torch.equal(saved[name], exact[name]) for name in exact)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in saved.values())


def test_full_fine_tuning_keeps_float32_weights_beside_a_reference_in_bfloat16(small_run, tmp_path, half):
    found = trainer_on(small_run, tmp_path, half)
    assert {p.dtype for p in found.model.parameters()} == FLOAT32
    assert {p.dtype for p in found.reference_model.parameters()} == BFLOAT16
    found.train()
    assert weights_digest(found.reference_model) == weights_digest(load_model(half))


def test_a_float32_reference_is_not_rounded_by_bfloat16_arithmetic(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_emulates_bfloat16", lambda: False)
    found = small_run.trainer(tmp_path, bf16=True)
    assert {p.dtype for p in found.reference_model.parameters()} == FLOAT32


def adapted(dtype):
    from small_architectures import small_architecture

    torch.manual_seed(0)
    return get_peft_model(
        small_architecture("llama", dtype), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_weights_are_the_very_same_after_others_merged_adapters_into_them(dtype):
    model = adapted(dtype)
    plain = weights_digest(model)
    with unmoved_base(model):
        model.merge_adapter()
        assert weights_digest(model) != plain
        model.unmerge_adapter()
    assert weights_digest(model) == plain
    model.merge_adapter()
    model.unmerge_adapter()
    assert weights_digest(model) != plain  # or there would be nothing to keep


def test_adapters_over_bfloat16_weights_stay_unmerged_in_sampling():
    for dtype, merges in ((torch.float32, True), (torch.bfloat16, False)):
        model = adapted(dtype)
        plain = weights_digest(model)
        with merged_adapters(model):
            assert (weights_digest(model) != plain) is merges
