"""Own data, own reward: calibrate log Z once, then train on it.

    python examples/calibrate_and_train.py REFERENCE PROPOSAL DATA.jsonl OUTPUT

Models are names or folders; the data has columns ``prompt`` and ``answer``.
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig

import disa


def correct(completions, answer, **_):
    """1 where the completion is the row's answer, else 0."""
    return [float(c.strip() == a) for c, a in zip(completions, answer, strict=True)]


if __name__ == "__main__":
    reference, proposal, data, output = sys.argv[1:]
    given = {
        "model": reference,
        "reward_funcs": correct,
        "train_dataset": load_dataset("json", data_files=data)["train"],
    }
    calibration = disa.CalibrationConfig(f"{output}/anchor", inverse_temperature=3, max_completion_length=16)
    anchor = disa.calibrate(**given, proposal=proposal, args=calibration)

    args = disa.DISAConfig(f"{output}/policy", max_steps=8, learning_rate=1e-4, use_cpu=not torch.cuda.is_available())
    adapters = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = disa.DISATrainer(**given, anchor=anchor, args=args, peft_config=adapters)
    trainer.train()
    trainer.save_model()
