"""Record every method's loss curve on the tiny run: ``python -m training_methods.loss_curves`` within ``tests``.

The file is the proof that a change of the code's shape changes no training. Record it anew only with a change that is
meant to change training, and say so in the commit.
"""

import copy
import json
import math
import sys
import tempfile
from pathlib import Path

from disa.training.methods import METHODS

RECORDED = Path(__file__).with_suffix(".json")
VARIANTS = {
    "full": ({}, tuple(METHODS)),
    "adapters": ({"lora": {"rank": 4, "alpha": 8}}, ("disa", "grpo", "lora_sft")),
    "micro_batches": ({"micro_batch": 4}, ("disa", "flowrl", "vargrad", "grpo")),
    "both_projections": ({"offline_share": 0.5}, ("disa",)),
}
"""By name: settings of ``training``, and the methods that are trained with them."""
SHOWN = ("loss", "grad_norm", "reward", "kl_to_target", "eps_audit", "forward_projection")


def curves(folder, recipe):
    """Loss, gradient norm and what else a step's line says of the training, by variant and method."""
    from disa.pipeline import Pipeline
    from disa.recipe import Recipe

    found = {}
    for variant, (settings, methods) in VARIANTS.items():
        training = recipe["training"] | {"methods": list(methods), "value_samples": 4} | settings
        pipeline = Pipeline(
            Recipe.model_validate(recipe | {"run_dir": str(folder), "training": training}), say=lambda line: None
        )
        pipeline.run("training")
        for method in methods:
            lines = (folder / "6_training" / method / "steps.jsonl").read_text().splitlines()
            found[f"{variant}/{method}"] = [_shown(json.loads(line)) for line in lines]
    return found


def _shown(line):
    return {name: line[name] for name in SHOWN if name in line and math.isfinite(line[name])}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import TINY_RECIPE

    with tempfile.TemporaryDirectory() as folder:
        found = curves(Path(folder) / "run", copy.deepcopy(TINY_RECIPE))
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")
