"""A GGUF file becomes a Hugging Face folder, one tensor in memory at a time.

A GGUF holds quantised weights; the folder holds what they stand for, and so a model of its own: close to the published
checkpoint, not equal to it. Where the published model ties its embeddings, files often store both tables, each
quantised its own way: they are one table again here, the one of more bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from disa.errors import DisaError
from disa.runs.files import file_digest, whole_folder
from disa.runs.folders import write_json
from disa.runs.progress import progress_bar

ARCHITECTURES = ("gemma3", "llama", "qwen2", "qwen3")
"""Those whose conversion is tested."""
TIED = 0.25
"""Two tables are one, quantised twice, when they differ by less than this share of their size (Frobenius). The same
table in four bits and in eight differs by about .1 at most; unrelated tables differ by sqrt 2."""
_SHARD = "512MB"
_ROWS = 4096
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


def import_gguf(
    file: str | Path, folder: str | Path, dtype: str = "bfloat16", stops: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a GGUF file's model, tokenizer and chat template as a Hugging Face folder, whole or not at all.

    ``stops`` end a completion beside the tokens that the file names. Returns what ``gguf.json`` in the folder says: the
    file's SHA-256, what it says of itself, how its weights were stored, and whether the embeddings are tied, with the
    relative difference of the two tables where it stores two. Raises DisaError where the file is no GGUF, is cut off,
    or holds anything that the folder could not express; where ``folder`` exists.
    """
    file, folder = Path(file), Path(folder)
    if folder.exists():
        raise DisaError("the folder exists", where=str(folder), fix="name another one, or remove it")
    said, stored = _read(file)
    _check(file, said, stored)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        config, tokenizer = AutoConfig.from_pretrained(**source), AutoTokenizer.from_pretrained(**source)
    except Exception as error:  # whatever the libraries raise over what the file says of itself
        raise _refusal(file, "no configuration and tokenizer can be made of it", error) from error
    ends = _ends(file, tokenizer, said, stops)
    difference = _difference(stored)
    config.tie_word_embeddings = difference is None or difference < TIED
    config.dtype, config.name_or_path = getattr(torch, dtype), ""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    places = _places(file, model, stored, said["general.architecture"])
    facts = {
        "file": file.name,
        "sha256": file_digest(file),
        "bytes": file.stat().st_size,
        "says": {name: value for name, value in said.items() if name.startswith("general.")},
        "stored": Counter(tensor.tensor_type.name for tensor in stored.values()),
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype,
        "tied": config.tie_word_embeddings,
        "tables_differ_by": difference,
    }
    with whole_folder(folder) as aside:
        model.config.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends if len(ends) > 1 else ends[0],
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(aside)
        _write_weights(aside, model, file, places, said)
        write_json(aside / "gguf.json", facts)
    return facts


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file says of itself, without its lists, and its tensors by name."""
    if find_spec("gguf") is None:
        raise DisaError("the package gguf is not installed", where="import-gguf", fix="pip install gguf")
    import gguf

    if not file.is_file():
        raise DisaError("file not found", where=str(file), fix="check the path")
    with file.open("rb") as opened:
        if (first := opened.read(4)) != b"GGUF":
            raise DisaError(f"starts with {first!r}, expected b'GGUF'", where=str(file), fix="give a GGUF file")
    try:
        reader = gguf.GGUFReader(file)
        said = {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
        return said, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # whatever it stumbles over: an index, a shape, an enumeration's value
        raise _refusal(file, "the GGUF is cut off or damaged", error) from error


def _refusal(file: Path, problem: str, error: Exception) -> DisaError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return DisaError(f"{problem} ({reason})", where=str(file), fix="get the file again and compare its SHA-256")


def _check(file: Path, said: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse what the folder could not express, before any work."""
    import gguf

    kind, problem = said.get("general.architecture"), ""
    if kind not in ARCHITECTURES:
        problem = f"architecture {kind}, supported are {', '.join(ARCHITECTURES)}"
    elif (scaling := said.get(f"{kind}.rope.scaling.type", "none")) != "none":
        problem = f"rotary positions scaled by {kind}.rope.scaling.type {scaling}, expected none"
    for tensor in stored.values():
        try:
            gguf.dequantize(np.array(tensor.data[:1]), tensor.tensor_type)
        except NotImplementedError:
            problem = problem or f"{tensor.name} is of type {tensor.tensor_type.name}, which gguf cannot dequantise"
    if problem:
        fix = "use the published checkpoint, or another GGUF of the model"
        raise DisaError(problem, where=str(file), fix=fix)


def _ends(file: Path, tokenizer: Any, said: Mapping[str, Any], stops: Sequence[str]) -> list[int]:
    """Ids of the tokens that end a completion, those that the file names first."""
    known = tokenizer.get_vocab()
    if unknown := [token for token in stops if token not in known]:
        raise DisaError(f"no token {unknown[0]!r}", where=str(file), fix="name a token of its vocabulary to stop at")
    named = [said.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys([*(i for i in named if i is not None), *(known[token] for token in stops)]))


def _difference(stored: Mapping[str, Any]) -> float | None:
    """Relative difference of the two embedding tables on about 1,024 rows; None where one is stored."""
    import gguf

    if _OUTPUT not in stored:
        return None
    pair = (stored[_EMBEDDING], stored[_OUTPUT])
    step = max(1, len(pair[1].data) // 1024)
    embedding, output = (gguf.dequantize(np.array(t.data[::step]), t.tensor_type) for t in pair)
    return float(np.linalg.norm(embedding - output) / np.linalg.norm(output))


def _places(file: Path, model: PreTrainedModel, stored: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Stored tensor of every parameter; nothing may be left over on either side."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    parameters = dict(model.named_parameters())  # of tied tables, one
    wanted = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in parameters}
    problem = ""
    if missing := [name for name, place in wanted.items() if place not in stored]:
        problem = f"holds nothing for {missing[0]}"
    elif unused := set(stored) - set(wanted.values()) - {_OUTPUT}:
        problem = f"holds {min(unused)}, which {type(model).__name__} has no place for"
    places = {name: stored[place] for name, place in wanted.items() if place in stored}
    if model.config.tie_word_embeddings and _OUTPUT in stored:
        both = (stored[_EMBEDDING], stored[_OUTPUT])
        places["model.embed_tokens.weight"] = max(both, key=lambda tensor: tensor.n_bytes)
    for name, tensor in places.items():
        found, expected = _shape(tensor), tuple(parameters[name].shape)
        if found != expected:
            problem = problem or f"{tensor.name} has shape {found}, expected {expected}"
    if problem:
        raise DisaError(problem, where=str(file), fix="use the published checkpoint")
    return places


def _write_weights(
    folder: Path, model: PreTrainedModel, file: Path, places: Mapping[str, Any], said: Mapping[str, Any]
) -> None:
    """Shards that Transformers reads, of whose tensors one at a time is dequantised."""
    plan = split_torch_state_dict_into_shards(dict(model.named_parameters()), max_shard_size=_SHARD)
    with progress_bar() as bar:
        task = bar.add_task("import-gguf: tensors", total=len(places))
        for shard, names in plan.filename_to_tensors.items():
            held = {}
            for name in names:
                held[name] = _weights(file, places[name], said, model.config.dtype)
                bar.advance(task)
            save_file(held, folder / shard, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def _weights(file: Path, tensor: Any, said: Mapping[str, Any], dtype: torch.dtype) -> torch.Tensor:
    """A tensor as Transformers lays it out, by blocks of rows; read, not mapped, so that it leaves the memory again."""
    import gguf

    kind = said["general.architecture"]
    above = 1 if kind == "gemma3" and tensor.name.endswith("norm.weight") else 0  # llama.cpp stores 1 + weight
    raw = np.fromfile(file, tensor.data.dtype, tensor.data.size, offset=int(tensor.data_offset))
    raw = raw.reshape(tensor.data.shape)
    values = torch.empty(_shape(tensor), dtype=dtype)
    for start in range(0, len(raw), _ROWS):
        block = slice(start, start + _ROWS)
        values[block] = torch.from_numpy(gguf.dequantize(raw[block], tensor.tensor_type) - above)
    if kind == "llama" and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
        # llama.cpp pairs neighbouring rows of a head, Transformers one of each half.
        heads = said["llama.attention.head_count" + ("_kv" if "attn_k" in tensor.name else "")]
        return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return values


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(length) for length in reversed(tensor.shape))
