"""What models of 0.5B, 7B and 32B weights need by the plan's count: memory by stage, alone and sharded, and hours.

No weights are loaded: shapes are those of the published configurations of Qwen2.5, recipes those of ``recipes/``. Hours
are operations at the stated utilisations of :class:`disa.planning.cluster.Cluster`. What vLLM takes for its own caches
is not in it.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from disa.planning.cluster import GPUS, Cluster
from disa.planning.model_shape import ModelShape
from disa.planning.work import StageWork, TextLengths, count_work
from disa.recipe import Recipe, load_recipe
from page import fill, table

PAGE = Path(__file__).parents[1] / "docs" / "planning.md"
RECIPES = Path(__file__).parents[1] / "recipes"
GPU, COUNTS = "h100", (8, 64)
LENGTHS = TextLengths(prompt=200, completion=600, demonstration=0)
# hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size
MODELS = {
    "0.5B": ("qwen-7b-node.yaml", (896, 4864, 24, 14, 2, 151936)),  # the recipe of 7B: the same lengths and batches
    "7B": ("qwen-7b-node.yaml", (3584, 18944, 28, 28, 4, 152064)),
    "32B": ("verl/qwen-32b-nodes.yaml", (5120, 27648, 64, 40, 8, 152064)),
}
WAYS = {
    "LoRA": ["training.lora={rank: 32}"],
    "full, AdamW": ["training.lora=null"],
    "full, 8-bit AdamW": ["training.lora=null", "training.optim=paged_adamw_8bit"],
}


def shape_of(sizes: tuple[int, ...]) -> ModelShape:
    """Shape of a bfloat16 checkpoint, from its configuration."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
    tied = sizes[0] < 2048  # the published models up to 3B share input and output embedding
    config = Qwen2Config(tie_word_embeddings=tied, **dict(zip(names, sizes, strict=True)))
    with torch.device("meta"):
        return dataclasses.replace(ModelShape.of(Qwen2ForCausalLM(config)), precision="bfloat16")


def counted(recipe: Recipe, shape: ModelShape) -> dict[str, StageWork]:
    """Work of a recipe's stages on GPUs, whose training keeps the inputs of layers alone."""
    prompts = {"train": recipe.tasks.train_prompts, "validation": 0, "heldout": recipe.tasks.heldout_prompts}
    return count_work(recipe, shape, LENGTHS, prompts, checkpointed=True)


def main() -> None:
    """Count, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    room, rows = GPUS[GPU].memory, []
    for name, (file, sizes) in MODELS.items():
        shape = shape_of(sizes)
        for way, changes in WAYS.items():
            work = counted(load_recipe(RECIPES / file, changes), shape)
            for stage in ("2_proposals", "3_scoring", "6_training/disa"):
                if stage != "6_training/disa" and way != "LoRA":
                    continue
                held = [Cluster(GPU, gpus).per_gpu(work[stage]) for gpus in (1, *COUNTS)]
                cells = [f"{x / 1e9:.0f}" + ("" if x <= room else " (no)") for x in held]
                hours = [f"{Cluster(GPU, gpus).seconds(work[stage]) / 3600:.1f}" for gpus in COUNTS]
                rows.append([name, way if stage == "6_training/disa" else "any", stage, *cells, *hours])
    header = ["model", "training", "stage", "one GPU, GB", *(f"{n} GPUs, GB each" for n in COUNTS)]
    header += [f"hours on {n}" for n in COUNTS]
    tokens = f"{LENGTHS.prompt:.0f} prompt and {LENGTHS.completion:.0f} completion tokens on average"
    text = [f"{GPU.upper()} of {room / 1e9:.0f} GB; (no): does not fit. {tokens}.", ""]
    fill("large-models", "\n".join([*text, *table(header, rows)]), given.page)


if __name__ == "__main__":
    main()
