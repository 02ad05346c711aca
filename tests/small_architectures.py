"""One small random model of each architecture that shares prompts, with whatever is peculiar to its attention."""

import torch
import transformers

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
_HEADS = {"head_dim": 8, "query_pre_attn_scalar": 8}
_EXPERTS = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
# Name of the classes, and settings.
_MODELS = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with a window": ("Qwen2", {"use_sliding_window": True, **_WINDOWED}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3 of experts": ("Qwen3Moe", _EXPERTS),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0, **_HEADS, **_WINDOWED}),
    "gemma3": ("Gemma3", {**_HEADS, **_WINDOWED}),
    "gemma3 with capped logits": ("Gemma3", {"final_logit_softcapping": 2.0, **_HEADS, **_WINDOWED}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral with a window": ("Mistral", {"sliding_window": WINDOW}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2", {}),
    "phi": ("Phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "granite": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7}),
    "cohere2": ("Cohere2", {"logit_scale": 0.25, "head_dim": 8, **_WINDOWED}),
}
NAMES = tuple(_MODELS)
GENERATED_IN = {name: torch.float32 if name == "gemma2" else torch.float64 for name in NAMES}
"""For comparisons with ``generate``: eager attention casts scores to float32, where float64's mask overflows."""


def small_architecture(name, dtype=torch.float64):
    """Random weights, large enough that attention matters; float64, so that rounding hides nothing."""
    family, own = _MODELS[name]
    config = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config(**_SHARED | own))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if model.config.model_type in ("qwen3_moe", "mixtral"):
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model.to(dtype).eval()


def ragged_rows(seed=0):
    """Prompts and completions in no order: groups of 4, 3 and 1, a completion of one token, an empty one."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(2, VOCABULARY, (n,), generator=generator).tolist()

    prompts = {length: ids(length) for length in (6, 3, 9)}
    rows = [(6, 5), (3, 1), (9, 7), (6, 2), (3, 6), (6, 0), (6, 8), (3, 4)]
    return [prompts[p] for p, _ in rows], [ids(c) for _, c in rows]
