"""verl's FSDP checkpoints as Hugging Face folders in float32: ``verl.model_merger`` rounds to bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from disa.errors import DisaError
from disa.lm.loading import load_tokenizer
from disa.runs.files import whole_folder
from disa.runs.folders import read_json


def export_checkpoint(checkpoints: Path, target: Path) -> int:
    """Write the newest checkpoint of a training as a model folder, its weights as they were trained.

    Parameters
    ----------
    checkpoints : Path
        ``trainer.default_local_dir`` of verl's configuration.
    target : Path
        Folder to write; one that is there is replaced.

    Returns
    -------
    int
        The step it was saved at.

    Raises
    ------
    DisaError
        Where there is no checkpoint, or none that FSDP wrote of a whole model.
    """
    newest = checkpoints / "latest_checkpointed_iteration.txt"
    if not newest.is_file():
        raise DisaError("this training has no checkpoint", where=str(checkpoints), fix="run 'disa verl RECIPE' first")
    step = int(newest.read_text(encoding="utf-8"))
    folder = checkpoints / f"global_step_{step}" / "actor"
    state = _whole(folder)
    if any("lora_" in key for key in state):
        fix = f"python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir {target}"
        raise DisaError("the checkpoint holds adapters", where=str(folder), fix=fix)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "huggingface"), dtype=torch.float32)
    model.load_state_dict(state)
    with whole_folder(target) as new:
        model.save_pretrained(new)
        load_tokenizer(folder / "huggingface").save_pretrained(new)
        stops = folder / "huggingface" / "generation_config.json"
        if stops.is_file():
            shutil.copy(stops, new)
    return step


def _whole(folder: Path) -> dict[str, Tensor]:
    """A model's tensors, put together from the shards that verl's processes saved."""
    world = read_json(folder / "fsdp_config.json", missing="verl's FSDP engine writes this file")["world_size"]
    # Sharded tensors are pickled objects of torch; the files are those that this run's own workers wrote.
    shards = [
        torch.load(folder / f"model_world_size_{world}_rank_{rank}.pt", map_location="cpu", weights_only=False)
        for rank in range(world)
    ]
    whole = {}
    for key, first in shards[0].items():
        tensor = first
        if isinstance(first, DTensor):
            # Of a mesh with copies (ddp, fsdp), the first ranks hold one whole copy.
            pieces = [shard[key].to_local() for shard in shards[: first.device_mesh.mesh.shape[-1]]]
            place = first.placements[-1]
            tensor = torch.cat(pieces, dim=place.dim) if place.is_shard() else pieces[0]
        whole[key] = tensor.float()
    return whole
