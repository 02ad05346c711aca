"""Models inside packages: the converted folder is the GGUF's model, made once, and its absence is explained."""

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from disa.errors import DisaError
from disa.lm.loading import load_model, load_tokenizer
from disa.lm.log_probs import sequence_log_probs
from disa.warmup import embedded_models
from disa.warmup.base_model import base_model
from disa.warmup.config import WarmupConfig
from disa.warmup.embedded_models import EMBEDDED_MODELS, embedded_model_folder

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *"0123456789+-*/()▁"]
HEADS = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
# Seven layers: with a pattern of six, one of them attends to everything, the others through a window. A GGUF does not
# hold query_pre_attn_scalar: the default of 256, which the 270M model has, is taken.
TINY = Gemma3TextConfig(
    vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=7, sliding_window=4, **HEADS
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "disa"


def write_gguf(path, model):
    """The model in float32 under GGUF's names; llama.cpp keeps Gemma's norms as 1 + weight and 2-D ones as they are."""
    gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    writer = gguf.GGUFWriter(path, "gemma3")
    config = model.config
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-1000.0] * len(WORDS))
    writer.add_token_types([3] * 4 + [1] * (len(WORDS) - 4))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied to the embedding
            values = weight.numpy() + (1 if name.endswith("norm.weight") else 0)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_converted_gemma_gives_the_log_probs_of_the_model_its_gguf_was_written_from(tmp_path, monkeypatch, cache):
    torch.manual_seed(0)
    original = Gemma3ForCausalLM(TINY).eval()
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # norms as well: their offset of 1 must survive
    write_gguf(tmp_path / "tiny.gguf", original)
    calls = []

    def find_gguf(scratch):
        calls.append(scratch)
        return tmp_path / "tiny.gguf"

    changed = EMBEDDED_MODELS["gemma3-270m"]._replace(find_gguf=find_gguf)
    monkeypatch.setitem(embedded_models.EMBEDDED_MODELS, "gemma3-270m", changed)

    folder = embedded_model_folder("gemma3-270m")
    assert folder == cache / "gemma3-270m"
    converted, tokenizer = load_model(folder), load_tokenizer(folder)
    assert converted.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    ids = tokenizer("1+2*(3-4)/5")["input_ids"]
    assert ids == [2, *(WORDS.index(c) for c in "1+2*(3-4)/5")]
    # Six completion tokens at up to 20 nats, two float32 passes that add up the same numbers in the same order.
    bound = 6 * 20 * 2.0**-22
    rows = ([ids[:6]], [ids[6:]])
    assert sequence_log_probs(converted, *rows) == pytest.approx(sequence_log_probs(original, *rows), abs=bound)

    model, _ = base_model(WarmupConfig(base="gemma3-270m"), alphabet="")
    assert len(calls) == 1, "converted a second time"
    for mine, theirs in zip(model.parameters(), original.parameters(), strict=True):
        # Adding 1 to a norm's weight below 3 and taking it away again rounds to 24 bits.
        assert torch.allclose(mine, theirs, rtol=0, atol=2.0**-22)
    assert [path.name for path in cache.iterdir()] == ["gemma3-270m"]


@pytest.mark.parametrize("base", EMBEDDED_MODELS)
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(base, monkeypatch, cache):
    monkeypatch.setattr(embedded_models, "find_spec", lambda name: None)
    package = EMBEDDED_MODELS[base].package
    with pytest.raises(
        DisaError, match=f"warmup.base is {base} but the package {package} is not installed.*Fix: make "
    ):
        embedded_model_folder(base)
    assert not cache.exists()
