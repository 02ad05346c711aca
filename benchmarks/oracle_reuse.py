"""Completions until the oracle's target is near, by how many optimiser steps use each of them.

    python benchmarks/oracle_reuse.py --seeds 3

DISA with the exact log Z on the model of ``oracle_methods.py``. For every number of steps per completion and every
learning rate, the fewest batches of completions after which training to their end, with a linear schedule, leaves a
mean KL to the target of at most .01 nats; the best learning rate of each number is reported.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import transformers

from disa.testing import kl
from disa.training.disa_config import DISAConfig
from disa.training.trainer import DISATrainer
from oracle_methods import BATCH, World, trained

NEAR = 0.01
BATCHES = (40, 80, 120, 160, 200, 240, 280, 320, 400)
RATES = (0.0125, 0.025, 0.05, 0.1)


def distance(world: World, batches: int, uses: int, rate: float) -> float:
    """Mean KL to the target of a policy trained on ``batches`` batches, each in ``uses`` steps, nats."""
    own = {"num_iterations": uses}
    trainer = world.online(DISATrainer, DISAConfig, own=own, anchor=world.anchor(world.log_z))
    trainer.args.max_steps, trainer.args.learning_rate = batches * uses, rate
    return float(kl(trained(trainer)[0], world.target).mean())


def batches_needed(world: World, uses: int, rate: float) -> float:
    """Fewest of ``BATCHES`` that are enough, infinity where none is."""
    return next((n for n in BATCHES if distance(world, n, uses, rate) <= NEAR), np.inf)


def main() -> None:
    """Print one line per seed, number of steps and learning rate, and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--uses", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    best: dict[int, list[float]] = {uses: [] for uses in options.uses}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder) / "reference", seed, steps=1)
            for uses in options.uses:
                needed = {rate: batches_needed(world, uses, rate) for rate in RATES}
                best[uses].append(BATCH * min(needed.values()))
                print(f"seed {seed}, {uses} steps per completion: batches by rate {needed}", flush=True)
    print("\n| steps per completion | completions until KL .01, by seed | mean |\n| --- | --- | --- |")
    for uses, found in best.items():
        print(f"| {uses} | {', '.join(f'{n:,.0f}' for n in found)} | {np.mean(found):,.0f} |")


if __name__ == "__main__":
    main()
