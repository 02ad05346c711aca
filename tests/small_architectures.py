"""One small random model of each architecture that shares prompts, with whatever is peculiar to its attention."""

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

VOCABULARY = 23
WINDOW = 4  # shorter than the prompts: the window cuts in prompts, across the seam, and in completions
_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2 with a window": (Qwen2ForCausalLM, Qwen2Config, {"use_sliding_window": True, **_WINDOWED}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 8, "query_pre_attn_scalar": 8, **_WINDOWED}),
}
NAMES = tuple(_MODELS)


def small_architecture(name, dtype=torch.float64):
    """Random weights, large enough that attention matters; float64, so that rounding hides nothing."""
    model_class, config_class, own = _MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**_SHARED | own))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def ragged_rows(seed=0):
    """Prompts and completions in no order: groups of 4, 3 and 1, a completion of one token, an empty one."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(2, VOCABULARY, (n,), generator=generator).tolist()

    prompts = {length: ids(length) for length in (6, 3, 9)}
    rows = [(6, 5), (3, 1), (9, 7), (6, 2), (3, 6), (6, 0), (6, 8), (3, 4)]
    return [prompts[p] for p, _ in rows], [ids(c) for _, c in rows]
