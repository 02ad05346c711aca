"""Time one policy step against TRL's GRPOTrainer and its experimental A2POTrainer.

Same weights, prompts, number and length of completions, reward and optimiser; all compare with a frozen reference.
Fills its block of docs/performance.md; wants a quiet machine::

    python benchmarks/policy_step.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.a2po import A2POConfig, A2POTrainer

from disa.lm.hf_trainer import trainer_arguments
from disa.training.balance_trainer import BalanceTrainer
from disa.training.disa_config import DISAConfig
from disa.training.log_z import Frozen
from page import fill, table
from paired import Seconds, in_turns, ratio
from scoring_speed import PAGE, random_llama
from small_policy import last_step, reward, word_tokenizer

BETA = 4.0
# Prompts, completions of each, tokens of a prompt, tokens of a completion. The last has next to nothing to share.
CASES = ((4, 8, 64, 64), (2, 8, 128, 128), (4, 8, 128, 16), (16, 2, 8, 32))


def ways(folder: Path, case: tuple[int, int, int, int]) -> dict[str, Callable[[], Seconds]]:
    """One step of each trainer, made anew every time from the same weights, as seconds."""
    prompts, group, length, tokens = case
    model = random_llama()
    tokenizer = word_tokenizer(model.config.vocab_size)
    model.save_pretrained(folder / "model")
    words = torch.randint(2, model.config.vocab_size, (2 * prompts, length)).tolist()
    texts = [" ".join(f"w{i}" for i in row) for row in words]
    shared = {
        "output_dir": str(folder / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": prompts * group,
        "max_completion_length": tokens,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        **trainer_arguments(bf16=False, log_every=1),
    }

    def step(make: Callable[[Any], Any]) -> Callable[[], Seconds]:
        def run() -> Seconds:
            # From its folder: the engine loads the reference from where the policy came from.
            policy = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
            return last_step(make(policy))

        return run

    rows = Dataset.from_list([{"prompt": text, "prompt_id": text} for text in texts])
    # A2PO draws one completion per row.
    repeated = Dataset.from_list([{"prompt": text} for text in texts for _ in range(group)])

    def ours(policy: Any) -> Any:
        args = DISAConfig(inverse_temperature=BETA, num_generations=group, baseline="none", **shared)
        return BalanceTrainer(
            policy, [reward], Frozen(dict.fromkeys(texts, 0.0)), args, rows, processing_class=tokenizer
        )

    def grpo(policy: Any) -> Any:
        args = GRPOConfig(beta=1 / BETA, num_generations=group, **shared)
        return GRPOTrainer(policy, [reward], args, rows, processing_class=tokenizer)

    def a2po(policy: Any) -> Any:
        args = A2POConfig(beta2=1 / BETA, **shared)
        trainer = A2POTrainer(policy, [reward], args, repeated, processing_class=tokenizer)
        # Its first stage, the values, is no part of a step.
        trainer._optimal_values = dict.fromkeys(texts, 0.0)
        return trainer

    return {"ours": step(ours), "grpo": step(grpo), "a2po": step(a2po)}


def main() -> None:
    """Measure and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measured turns")
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    options = parser.parse_args()
    lines = []
    for case in CASES[: options.cases]:
        with tempfile.TemporaryDirectory() as folder:
            found = in_turns(ways(Path(folder), case), options.repeats)
        lines.append([*case, *ratio(found["grpo"], found["ours"]), *ratio(found["a2po"], found["ours"])])
        print(lines[-1], flush=True)
    header = ["prompts", "completions of each", "prompt", "completion", "GRPOTrainer / ours", "by CPU time"]
    text = [
        f"{torch.get_num_threads()} threads, median of {options.repeats} turns with its range; a step is sampling, "
        "reward, reference, loss, backward and AdamW. Ours is `BalanceTrainer` with a frozen log Z and no baseline.",
        "",
        *table([*header, "A2POTrainer / ours", "by CPU time"], lines),
    ]
    fill("policy-step", "\n".join(text), PAGE)


if __name__ == "__main__":
    main()
