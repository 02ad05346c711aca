"""Time the estimator of log Z against the number of trajectories, on one core.

Prints a table (best of three) and draws it::

    OMP_NUM_THREADS=1 python benchmarks/partition_speed.py --out docs/figures/partition_speed.png
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from disa import estimate_log_partition_batch

DRAWS_PER_PROMPT = 100
REPEATS = 3
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
INTERVALS = ("gamma", "betting")


def synthetic(trajectories: int, success_rate: float) -> dict[str, Any]:
    """Draws of prompts with 100 trajectories each, a quarter from the reference, in random order."""
    rng = np.random.default_rng(0)
    log_ref = rng.normal(-60.0, 10.0, trajectories)
    return {
        "rewards": (rng.random(trajectories) < success_rate).astype(np.float64),
        "prompt_index": rng.permutation(np.repeat(np.arange(trajectories // DRAWS_PER_PROMPT), DRAWS_PER_PROMPT)),
        "log_ref": log_ref,
        "log_proposal": log_ref + rng.normal(0.0, 1.0, trajectories),
        "from_reference": rng.random(trajectories) < 0.25,
        "lengths": rng.integers(10, 200, trajectories).astype(np.float64),
        "beta": 15.0,
    }


def best_seconds(arrays: dict[str, Any], interval: str) -> float:
    """Shortest of three runs with all diagnostics."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        estimate_log_partition_batch(**arrays, interval=interval)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def draw(table: dict[str, list[float]], path: Path) -> None:
    """Seconds against trajectories on logarithmic axes, with a line of slope one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (interval, seconds), colour in zip(table.items(), ("#0072B2", "#D55E00"), strict=True):
        axes.loglog(SIZES, seconds, "o-", color=colour, label=f"{interval} interval")
    linear = table["gamma"][-1] * np.array(SIZES) / SIZES[-1]
    axes.loglog(SIZES, linear, "--", color="#7F7F7F", label="proportional to trajectories")
    axes.set(xlabel="trajectories (100 a prompt)", ylabel="seconds, one core", title="Time to estimate log Z")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/partition_speed.png"), help="PNG to write")
    parser.add_argument("--success-rate", type=float, default=0.5, help="share of rewarded trajectories")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    table: dict[str, list[float]] = {interval: [] for interval in INTERVALS}
    print(f"{'trajectories':>12} {'prompts':>8} " + " ".join(f"{name + ' (s)':>12}" for name in INTERVALS))
    for size in SIZES:
        arrays = synthetic(size, options.success_rate)
        for interval in INTERVALS:
            table[interval].append(best_seconds(arrays, interval))
        row = " ".join(f"{table[interval][-1]:12.3f}" for interval in INTERVALS)
        print(f"{size:12,} {size // DRAWS_PER_PROMPT:8,} {row}")
    draw(table, options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
