"""Train on the trajectories that log Z was estimated from, and on nothing else: no draws, no reference in memory.

    python examples/offline_only.py MODEL DATA.jsonl OUTPUT

The loss is the forward projection: likelihood of every trajectory, weighted by the density of the target over that of
the models that drew it. The data has columns ``prompt`` and ``answer``.
"""

import sys

import torch
from datasets import load_dataset
from transformers import AutoTokenizer

import disa


def near(completions, answer, **_):
    """Share of the answer's characters that are in their place."""
    return [
        sum(a == b for a, b in zip(c, right, strict=False)) / len(right)
        for c, right in zip(completions, answer, strict=True)
    ]


if __name__ == "__main__":
    model, data, output = sys.argv[1:]
    rows, tokenizer = load_dataset("json", data_files=data)["train"], AutoTokenizer.from_pretrained(model)
    calibration = disa.CalibrationConfig(f"{output}/anchor", inverse_temperature=3, max_completion_length=16)
    anchor = disa.calibrate(model, near, rows, calibration)

    args = disa.OfflineConfig(
        f"{output}/policy",
        max_steps=8,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        use_cpu=not torch.cuda.is_available(),
    )
    trajectories = disa.offline_trajectories(anchor, rows, tokenizer)
    trainer = disa.OfflineTrainer(model, args, trajectories, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
