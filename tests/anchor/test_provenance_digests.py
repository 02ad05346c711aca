"""Digests in the anchor's fingerprint: equal for the same thing in other clothes, different for another thing."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from disa.lm.digests import chat_template_digest, tokenizer_digest, weights_digest
from disa.lm.loading import load_model, load_tokenizer
from disa.warmup.config import SmallModelConfig
from disa.warmup.small_model import character_tokenizer, small_model

TOKENIZER = character_tokenizer("abcdefgh")
SHAPE = SmallModelConfig(hidden_size=16, layers=1, heads=2, context_length=32)


@pytest.fixture
def llama():
    return small_model(SHAPE, TOKENIZER, seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["embed_tokens", "v_proj"]},
    ],
    ids=["all linear", "modules to save", "dora", "embedding"],
)
def test_adapters_do_not_change_the_digest_of_the_base_weights_even_when_trained(llama, settings):
    plain = weights_digest(llama)
    adapted = get_peft_model(llama, LoraConfig(r=2, **settings))
    assert weights_digest(adapted) == plain
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                assert "lora_" in name or "modules_to_save" in name
                parameter.add_(1.0)
    assert weights_digest(adapted) == plain
    if "modules_to_save" not in settings:  # PEFT leaves the trained copy of such a module in place
        assert weights_digest(adapted.unload()) == plain


def test_merging_a_trained_adapter_gives_other_weights(llama):
    plain = weights_digest(llama)
    adapted = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert weights_digest(adapted.merge_and_unload()) != plain


def test_a_copy_stored_in_bfloat16_has_the_digest_of_its_float32_copy(llama, tmp_path):
    rounded = copy.deepcopy(llama).to(torch.bfloat16)
    rounded.save_pretrained(tmp_path)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert stored.dtype == torch.bfloat16
    # The same numbers, held in two and in four bytes each.
    assert weights_digest(stored) == weights_digest(load_model(tmp_path)) == weights_digest(rounded.float())
    assert weights_digest(stored) != weights_digest(llama)


def test_saving_and_loading_keeps_the_digest_and_mode_and_gradients_do_not_matter(llama, tmp_path):
    plain = weights_digest(llama)
    llama.save_pretrained(tmp_path)
    assert weights_digest(load_model(tmp_path)) == plain
    assert weights_digest(llama.eval().requires_grad_(False)) == plain


def test_the_smallest_change_of_any_weight_changes_the_digest(llama):
    plain = weights_digest(llama)
    for parameter in llama.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[-1] = torch.nextafter(flat[-1], flat[-1] + 1)
        assert weights_digest(llama) != plain
        with torch.no_grad():
            parameter.copy_(kept)
    assert weights_digest(llama) == plain
    assert weights_digest(small_model(SHAPE, TOKENIZER, seed=1)) != plain


# Each changes the logits of a Llama with the same weights.
@pytest.mark.parametrize(
    "settings",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"rms_norm_eps": 1e-2},
        {"hidden_act": "gelu"},
    ],
    ids=["rope theta", "rope scaling", "epsilon", "activation"],
)
def test_a_changed_model_setting_changes_the_law_and_the_digest_though_the_weights_are_the_same(
    llama, settings, tmp_path
):
    ids = torch.arange(2, 8)[None]
    llama.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    changed = load_model(tmp_path)
    with torch.no_grad():
        # Rounding of these logits, which are of order 0.1, is of order 1e-8.
        assert (changed(ids).logits - llama.eval()(ids).logits).abs().max() > 1e-6
    assert weights_digest(changed) != weights_digest(llama)
    for name, parameter in llama.named_parameters():
        assert torch.equal(parameter, changed.get_parameter(name))
    assert weights_digest(get_peft_model(changed, LoraConfig(r=2, target_modules=["q_proj"]))) != weights_digest(llama)


def test_what_trainers_and_loaders_write_into_the_settings_does_not_matter(llama):
    plain = weights_digest(llama)
    for name, value in {
        "use_cache": False,
        "pad_token_id": 3,
        "bos_token_id": 4,
        "architectures": ["Other"],
        "dtype": torch.bfloat16,
        "_name_or_path": "elsewhere",
        "a_field_of_a_later_release": None,
        "another_one": False,
    }.items():
        setattr(llama.config, name, value)
        assert weights_digest(llama) == plain, name


def test_tied_weights_count_once_whatever_the_checkpoint_stores(llama, tmp_path):
    config = copy.deepcopy(llama.config)
    config.tie_word_embeddings = True
    tied = type(llama)(config)
    plain = weights_digest(tied)
    tied.save_pretrained(tmp_path)
    assert weights_digest(load_model(tmp_path)) == plain
    assert weights_digest(get_peft_model(tied, LoraConfig(r=2, target_modules=["q_proj"]))) == plain


def test_the_tokenizers_digest_ignores_padding_and_truncation_and_survives_saving(tmp_path):
    tokenizer = character_tokenizer("abcdefgh")
    plain = tokenizer_digest(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    tokenizer.padding_side = "left"
    assert tokenizer_digest(tokenizer) == plain
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(load_tokenizer(tmp_path)) == plain


def test_other_vocabularies_and_stop_tokens_change_the_tokenizers_digest():
    plain = tokenizer_digest(TOKENIZER)
    assert tokenizer_digest(character_tokenizer("abcdefgi")) != plain
    more = character_tokenizer("abcdefgh")
    more.add_tokens(["new"])
    assert tokenizer_digest(more) != plain
    stops = character_tokenizer("abcdefgh")
    stops.eos_token = "a"
    assert tokenizer_digest(stops) != plain


def test_the_chat_template_counts_only_where_prompts_are_conversations():
    tokenizer = character_tokenizer("abcdefgh")
    tokenizer.chat_template = "{{ messages[0].content }}"
    first = chat_template_digest(tokenizer, conversational=True)
    assert chat_template_digest(tokenizer, conversational=False) == "none"
    assert chat_template_digest(tokenizer, conversational=True, system_prompt="Be brief.") not in (first, "none")
    tokenizer.chat_template = "{{ messages[0].content }}!"
    assert chat_template_digest(tokenizer, conversational=True) not in (first, "none")
