"""Peak memory of a calibration with a proposal of 1.5 and a reference of 0.5 billion weights, by stage.

Weights are random, of the shapes of Qwen2.5 and in bfloat16 on disk; prompts are few and short. ``disa run`` draws,
scores, estimates and freezes in a process of its own, and each stage's manifest has the most that it held. Where the
processor has no bfloat16 arithmetic, models compute in float32. What a stage would hold in bfloat16 is then computed
from measured numbers, as a model can be loaded all the same: ``measured - (loading float32) + (loading bfloat16)``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from disa.lm.loading import effective_precision
from disa.planning.model_shape import ModelShape
from disa.planning.work import TextLengths, count_work
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from disa.runs.peaks import peaks
from disa.warmup.small_model import character_tokenizer
from page import fill, table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
GOAL = 6e9
# hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads
SIZES = {"reference": (896, 4864, 24, 14, 2), "proposal": (1536, 8960, 28, 12, 2)}
# The model that is in memory at a stage's peak: the larger one of those that take turns.
HELD = {"2_proposals": "proposal", "3_scoring": "proposal", "4_partition": None, "5_anchor": "reference"}
ALPHABET = "0123456789+-*/()= :"


def configuration(role: str) -> Qwen2Config:
    """Of the published model, all of its 151,936 tokens included."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    return Qwen2Config(
        vocab_size=151936, tie_word_embeddings=True, **dict(zip(names, SIZES[role], strict=True)), **ends
    )


def write_model(role: str, folder: Path) -> None:
    """Write a random model in bfloat16, and the tokenizer that both share."""
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    Qwen2ForCausalLM(configuration(role)).save_pretrained(folder)
    character_tokenizer(ALPHABET).save_pretrained(folder)


def write_recipe(folder: Path) -> Path:
    """Write a calibration of a few prompts."""
    values = {
        "run_dir": str(folder / "run"),
        "tasks": {"name": "countdown", "train_prompts": 2, "heldout_prompts": 1, "validation_prompts": 0},
        "models": {role: str(folder / role) for role in SIZES},
        "sampling": {"max_completion_length": 8},
        "proposals": {"per_prompt": 4, "per_heldout_prompt": 4, "batch_size": 12},
        "scoring": {"tokens_per_batch": 256},
        "training": {"methods": ["disa"], "inverse_temperature": 2, "prompts_per_step": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def calibrate(folder: Path) -> dict[str, int]:
    """Peak bytes of every stage."""
    for role in SIZES:
        subprocess.run([sys.executable, __file__, "--model", role, str(folder / role)], check=True)
    subprocess.run([sys.executable, "-m", "disa", "run", str(write_recipe(folder)), "--until", "anchor"], check=True)
    return {stage: read_json(folder / "run" / stage / "manifest.json")["peak_memory"] for stage in HELD}


def loading(role: str, folder: Path, dtype: str) -> int:
    """Peak bytes of a process that loads a model and nothing else; the file is mapped, and its pages count."""
    command = [sys.executable, __file__, "--load", str(folder / role), dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def planned(recipe: Path) -> dict[str, float]:
    """Bytes by the plan's count for the larger model, by stage."""
    with torch.device("meta"):
        shape = ModelShape.of(Qwen2ForCausalLM(configuration("proposal")))
    work = count_work(load_recipe(recipe), shape, TextLengths(12, 8, 0), {"train": 2, "validation": 0, "heldout": 1})
    return {stage: work[stage].memory for stage in ("2_proposals", "3_scoring")}


def main() -> None:
    """Measure, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs=2, metavar=("ROLE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    if given.model:
        write_model(given.model[0], Path(given.model[1]))
        return
    if given.load:
        model = AutoModelForCausalLM.from_pretrained(given.load[0], dtype=given.load[1])
        for weight in model.parameters():
            weight.amax()  # what is mapped is read when it is looked at
        print(peaks()["peak_memory"])
        return
    with tempfile.TemporaryDirectory() as folder:
        held = calibrate(Path(folder))
        dtype = effective_precision("checkpoint", Path(folder) / "proposal")
        loads = {r: {d: loading(r, Path(folder), d) for d in ("float32", "bfloat16")} for r in SIZES}
        counted = planned(Path(folder) / "recipe.yaml")
    with torch.device("meta"):
        weights = {role: sum(p.numel() for p in Qwen2ForCausalLM(configuration(role)).parameters()) for role in SIZES}
    rows, most = [], 0
    for stage, role in HELD.items():
        saved = loads[role][dtype] - loads[role]["bfloat16"] if role else 0
        most = max(most, held[stage] - saved)
        numbers = (held[stage], counted.get(stage), held[stage] - saved)
        rows.append([stage, *("" if x is None else f"{x / 1e9:.2f}" for x in numbers)])
    header = ["stage", f"measured in {dtype}, GB", "weights and batch by the plan, GB", "in bfloat16, computed, GB"]
    text = [
        "Proposal of {proposal:,} weights, reference of {reference:,}.".format(**weights),
        "",
        *table(header, rows),
        "",
        *table(
            ["loading alone", "float32, GB", "bfloat16, GB"],
            [[role, *(f"{x / 1e9:.2f}" for x in found.values())] for role, found in loads.items()],
        ),
        "",
        f"The goal is {GOAL / 1e9:.0f} GB in bfloat16: {'reached' if most <= GOAL else 'missed'}, by computation"
        if dtype == "float32"
        else f"The goal is {GOAL / 1e9:.0f} GB: {'reached' if most <= GOAL else 'missed'}",
    ]
    fill("calibration-memory", "\n".join(text) + f", at {most / 1e9:.2f} GB.", given.page)


if __name__ == "__main__":
    main()
