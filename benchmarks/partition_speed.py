"""Time the estimator of log Z against the number of trajectories, on one core.

Fills the marked block of the page and draws its figure; wants a quiet machine::

    OMP_NUM_THREADS=1 python benchmarks/partition_speed.py
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from disa import estimate_log_partition_batch
from page import FIGURES, fill, table

DRAWS_PER_PROMPT = 100
REPEATS = 3
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
INTERVALS = ("gamma", "betting")
# Seconds that a million trajectories may take.
LIMITS = {"gamma": 2.0, "betting": 20.0}


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


def draw(seconds_by_interval: dict[str, list[float]], path: Path) -> None:
    """Seconds against trajectories on logarithmic axes, with a line of slope one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (interval, seconds), colour in zip(seconds_by_interval.items(), ("#0072B2", "#D55E00"), strict=True):
        axes.loglog(SIZES, seconds, "o-", color=colour, label=f"{interval} interval")
    linear = seconds_by_interval["gamma"][-1] * np.array(SIZES) / SIZES[-1]
    axes.loglog(SIZES, linear, "--", color="#7F7F7F", label="proportional to trajectories")
    axes.set(xlabel="trajectories (100 a prompt)", ylabel="seconds, one core", title="Time to estimate log Z")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, fill the page, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIGURES / "partition_speed.png", help="PNG to write")
    parser.add_argument("--success-rate", type=float, default=0.5, help="share of rewarded trajectories")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seconds: dict[str, list[float]] = {interval: [] for interval in INTERVALS}
    rows = []
    for size in SIZES:
        arrays = synthetic(size, options.success_rate)
        for interval in INTERVALS:
            seconds[interval].append(best_seconds(arrays, interval))
        measured = [seconds[interval][-1] for interval in INTERVALS]
        # A cost linear in trajectories is a constant per trajectory.
        each = [f"{1e6 * s / size:.2f}" for s in measured]
        rows.append([f"{size:,}", f"{size // DRAWS_PER_PROMPT:,}", *(f"{s:.3f}" for s in measured), *each])
        print(*rows[-1], sep=" | ", flush=True)
    draw(seconds, options.out)
    header = ["trajectories", "prompts", *(f"{name} (s)" for name in INTERVALS)]
    header += [f"{name} (µs a trajectory)" for name in INTERVALS]
    limits = "; ".join(f"{name} {seconds[name][-1]:.2f} s (asked for: {LIMITS[name]:g} s)" for name in INTERVALS)
    text = [
        f"Written by `python benchmarks/partition_speed.py`: one core, best of {REPEATS}, all diagnostics included, "
        f"{options.success_rate:.0%} of the trajectories rewarded, in random order.",
        "",
        f"- {SIZES[-1]:,} trajectories over {SIZES[-1] // DRAWS_PER_PROMPT:,} prompts: {limits}.",
        "",
        *table(header, rows),
    ]
    fill("partition_speed", "\n".join(text))
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
