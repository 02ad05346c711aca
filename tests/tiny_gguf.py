"""Small random models written as GGUF files, laid out as llama.cpp lays them out."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *"0123456789+-*/()▁", "()"]
_SHARED = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# Seven layers: with a pattern of six, one of them attends to everything, the others through a window. A GGUF does not
# hold query_pre_attn_scalar: the default of 256, which the 270M model has, is taken.
_GEMMA = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 7}
_MODELS = {
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, _GEMMA | {"sliding_window": 4}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True, "head_dim": 128}),
}


def small_model(kind):
    """Random in every parameter, norms as well: what is done to them must survive."""
    model_class, config_class, own = _MODELS[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**_SHARED | own)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def write_gguf(path, model, kind, *, tables=None, more=(), architecture=None, strings=()):
    """The model in float32 under GGUF's names.

    ``tables`` gives the GGML type of the embedding and of an output table beside it, ``more`` further tensors,
    ``strings`` further statements.
    """
    gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    writer = gguf.GGUFWriter(path, architecture or kind)
    config = model.config
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if kind == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters.get("rope_theta", 1e6))
    _write_tokenizer(writer, kind)
    for name, text in strings:
        writer.add_string(name, text)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    for name, weight in weights.items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            place = names.get_name(name, try_suffixes=(".weight", ".bias"))
            _add(gguf, writer, place, _as_llama_cpp(name, weight, kind, config), (tables or {}).get(place))
    if tables and config.tie_word_embeddings:
        _add(gguf, writer, "output.weight", weights["model.embed_tokens.weight"], tables["output.weight"])
    for name, values in more:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(gguf, writer, name, values, kind):
    values = np.ascontiguousarray(values, np.float32)
    if kind is None:
        writer.add_tensor(name, values)
    else:
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def _as_llama_cpp(name, weight, kind, config):
    """Gemma's norms are kept as 1 + weight; the halves of llama's heads are interleaved."""
    if kind == "gemma3" and name.endswith("norm.weight"):
        return weight + 1
    if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    return weight


def _write_tokenizer(writer, kind):
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 4 + [1] * (len(WORDS) - 4))
    if kind in ("gemma3", "llama"):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-1000.0] * len(WORDS))
        writer.add_unk_token_id(3)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(["( )"])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
