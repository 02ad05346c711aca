"""The checkpoint a warm-up starts from: random small weights, an embedded GGUF, a folder or a hub id."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from disa.lm.loading import load_tokenizer, trainable_model
from disa.warmup.config import WarmupConfig
from disa.warmup.embedded_models import EMBEDDED_MODELS, embedded_model_folder
from disa.warmup.small_model import character_tokenizer, small_model


def base_model(config: WarmupConfig, alphabet: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (trainable, float32) and tokenizer that every warm-up run of a recipe starts from."""
    if config.base == "small":
        tokenizer = character_tokenizer(alphabet)
        return small_model(config.small_model, tokenizer, config.seed), tokenizer
    path = embedded_model_folder(config.base) if config.base in EMBEDDED_MODELS else config.base
    return trainable_model(path), load_tokenizer(path)
