"""A model that may call tools while it writes, calibrated and trained: two lines more than without tools.

    python examples/tools.py MODEL DATA.jsonl OUTPUT

MODEL needs a chat template for tools (Qwen2.5-Instruct and Qwen3 have one). Columns: ``question``, ``answer``.
"""

import sys

import torch
from datasets import load_dataset

import disa


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


def correct(completions, answer, **_):
    """1 where the last message ends with the row's answer, else 0; a completion is a list of messages."""
    return [float(c[-1]["content"].strip().endswith(a)) for c, a in zip(completions, answer, strict=True)]


if __name__ == "__main__":
    model, data, output = sys.argv[1:]
    rows = load_dataset("json", data_files=data)["train"]
    rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["question"]}]})
    given = {"model": model, "reward_funcs": correct, "train_dataset": rows, "tools": [add, multiply]}

    calibration = disa.CalibrationConfig(f"{output}/anchor", inverse_temperature=3, max_completion_length=128)
    anchor = disa.calibrate(**given, args=calibration)
    args = disa.DISAConfig(f"{output}/policy", max_steps=4, learning_rate=1e-5, use_cpu=not torch.cuda.is_available())
    trainer = disa.DISATrainer(**given, anchor=anchor, args=args)
    trainer.train()
    trainer.save_model()
