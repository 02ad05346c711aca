"""Training on completions of hundreds of tokens: gradient norm, effective sample size and KL, by length scale and clip.

The policy is a small model of random weights whose stop token never comes, so that every completion has the length
that is asked for. The reward counts: 1 where tokens of one half of the vocabulary are in the majority. Each setting
starts from the same model, anchor and seed, and uses each completion in two optimiser steps, so that there are
importance weights. One seed: differences between settings are examples, and growth with length is arithmetic.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PhiConfig, PhiForCausalLM, PrinterCallback

import disa
from page import fill, table
from small_policy import word_tokenizer

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "long_completions.md"
VOCABULARY, PROMPTS, GROUP, BETA = 18, 2, 8, 4.0
LENGTHS, STEPS = (64, 256, 512), 12
SETTINGS: dict[str, dict[str, Any]] = {
    "neither": {},
    "length scale": {"length_scale": True},
    "clip": {"residual_clip": 5.0},
    "both": {"length_scale": True, "residual_clip": 5.0},
}
METRICS = ("grad_norm", "reuse/ess", "residual/rms", "residual/clipped", "kl_to_target", "kl_to_reference", "reward")


def majority(completions: list[str], **_: Any) -> list[float]:
    """1 where most tokens are of the vocabulary's upper half."""
    numbers = [[int(word[1:]) for word in text.split() if word[1:].isdigit()] for text in completions]
    return [float(2 * sum(n >= VOCABULARY // 2 + 1 for n in row) > len(row)) for row in numbers]


def write_model(folder: Path, length: int) -> None:
    """A random model; its head's bias leaves nothing to padding and stop token."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length + 16,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = PhiForCausalLM(config)
    with torch.no_grad():
        model.lm_head.bias[:2] = -30.0
    model.save_pretrained(folder)
    word_tokenizer(VOCABULARY).save_pretrained(folder)


def train(folder: Path, anchor: Any, rows: list[dict[str, str]], length: int, setting: dict[str, Any]) -> list[Any]:
    """Logged steps of one training."""
    changes = dict(setting)
    if changes.pop("length_scale", False):
        changes["length_scale"] = float(length)
    args = disa.DISAConfig(
        str(folder / "policy"),
        num_generations=GROUP,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_iterations=2,
        max_steps=STEPS,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        **changes,
    )
    trainer = disa.DISATrainer(str(folder / "model"), majority, anchor, args, rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def main() -> None:
    """Measure, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    rows, started = [], time.process_time()
    prompts = [{"prompt": f"w{i} w{i + 1}"} for i in range(2, 2 + PROMPTS)]
    for length in given.lengths:
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path)
            write_model(folder / "model", length)
            how = {"inverse_temperature": BETA, "max_completion_length": length, "num_generations": 32}
            settings = disa.CalibrationConfig(str(folder / "anchor"), **how)
            anchor = disa.calibrate(str(folder / "model"), majority, prompts, settings)
            for name, setting in SETTINGS.items():
                lines = train(folder, anchor, prompts, length, setting)
                norms = [line["grad_norm"] for line in lines]
                last = {key: [x[key] for x in lines[-4:] if key in x] for key in METRICS[1:]}
                means = ["" if not values else f"{statistics.fmean(values):.2f}" for values in last.values()]
                rows.append([length, name, f"{statistics.median(norms):.2f}", f"{max(norms):.2f}", *means])
                print(*rows[-1], f"{time.process_time() - started:.0f} s", flush=True)
    names = ["ESS share", "residual rms", "clipped", "KL to target", "KL to reference", "reward"]
    header = ["tokens", "setting", "median gradient norm", "largest", *names]
    text = [
        f"{STEPS} optimiser steps of {PROMPTS * GROUP} completions, each used twice; length scale: the number of "
        "tokens; clip: 5 nats; `max_grad_norm` 1. Norms are before it, of all steps; the rest is the last four's mean. "
        f"{time.process_time() - started:.0f} CPU seconds.",
        "",
        *table(header, rows),
    ]
    fill("long-completions", "\n".join(text), given.page)


if __name__ == "__main__":
    main()
