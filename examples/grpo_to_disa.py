"""One script for GRPO by TRL and for DISA: what changes is an anchor, the trainer's name and its arguments' name.

    python examples/grpo_to_disa.py grpo|disa MODEL DATA.jsonl OUTPUT

The data has columns ``prompt`` and ``answer``.
"""

import sys

import torch
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer

import disa


def correct(completions, answer, **_):
    """1 where the completion is the row's answer, else 0."""
    return [float(c.strip() == a) for c, a in zip(completions, answer, strict=True)]


def grpo(model, dataset, output, **settings):
    """Train as TRL's users know it."""
    args = GRPOConfig(output, max_completion_length=16, **settings)
    return GRPOTrainer(model=model, reward_funcs=correct, args=args, train_dataset=dataset)


def with_disa(model, dataset, output, **settings):
    """Train the same policy towards the reference times exp(3 * reward)."""
    calibration = disa.CalibrationConfig(f"{output}/anchor", inverse_temperature=3, max_completion_length=16)
    anchor = disa.calibrate(model, correct, dataset, calibration)
    args = disa.DISAConfig(output, **settings)  # the length limit is the anchor's
    return disa.DISATrainer(model=model, reward_funcs=correct, args=args, train_dataset=dataset, anchor=anchor)


if __name__ == "__main__":
    method, model, data, output = sys.argv[1:]
    build = {"grpo": grpo, "disa": with_disa}[method]
    settings = {"max_steps": 8, "learning_rate": 1e-5, "use_cpu": not torch.cuda.is_available()}
    trainer = build(model, load_dataset("json", data_files=data)["train"], output, **settings)
    trainer.train()
    trainer.save_model()
