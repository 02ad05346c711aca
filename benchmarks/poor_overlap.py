"""The default estimator where the proposal writes other solutions than the reference.

The long completions of benchmarks/gate.py, D = KL(reference given success || proposal given success) of 5 to 20 nats
and few draws, by how many of a prompt's reference draws succeeded. Beside the default stand the reference draws' pass
rate, and the half hit in units of the hits' own mean weight, ``mean(w s) + w_bar / (2 N)``, which two hits of e^-10
take to 0. Fills its block of the page::

    OMP_NUM_THREADS=1 python benchmarks/poor_overlap.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from disa.partition import estimate_log_partition_batch
from disa.partition.draws import collect_draws
from disa.partition.log_weights import linear_weights, log_z_from_q
from disa.partition.unseen_weight import hit_weight
from gate import BETA, P_REFERENCE, LongCompletions
from page import fill, table

Array = NDArray[np.float64]
DIVERGENCES, SIZES, SEEDS = (5.0, 10.0, 20.0), (16, 32, 64), 20
HITS = ("all", "0", "1", "2", "3", "4")
METHODS = ("default", "own weight", "pass rate")


def markdown() -> str:
    """Table of bias and RMSE of log Z (nats) and coverage, by D, N and reference hits."""
    exact = float(log_z_from_q(np.array(P_REFERENCE), BETA, (0.0, 1.0)))
    rows = []
    for d in DIVERGENCES:
        for size in SIZES:
            found = [replicate(seed, d, size) for seed in range(SEEDS)]
            hits, low, high, *estimates = (np.concatenate(values) for values in zip(*found, strict=True))
            for wanted in HITS:
                own = hits >= 0 if wanted == "all" else hits == int(wanted)
                if own.sum() < 20:
                    continue
                error = [estimate[own] - exact for estimate in estimates]
                covered = np.mean((low[own] <= exact) & (exact <= high[own]))
                numbers = [*map(np.mean, error), *(np.sqrt(np.mean(e**2)) for e in error), covered]
                rows.append([f"{d:g}", size, wanted, int(own.sum()), *(f"{value:.3f}" for value in numbers)])
    header = ["D", "N", "reference hits", "prompts"]
    header += [f"{what}, {name}" for what in ("bias", "RMSE") for name in METHODS] + ["coverage, gamma"]
    return "\n".join(
        [
            "Written by `python benchmarks/poor_overlap.py`. Prompts of `benchmarks/gate.py`: "
            f"p = {P_REFERENCE:g}, beta {BETA:g}, a quarter of the N draws from the reference, 100 prompts for each of "
            f"seeds 0 to {SEEDS - 1}; nats, by the number of reference draws that succeeded (20 prompts or more). "
            "*own weight* is mean(w s) + w_bar / (2N), 1 / (2N) without hits.",
            "",
            *table(header, rows),
        ]
    )


def replicate(seed: int, d: float, size: int) -> tuple[Array, ...]:
    """Reference hits, interval, and the three estimates of log Z of 100 prompts."""
    arrays = LongCompletions(np.random.default_rng(seed), d).even(size // 4, size)
    default = estimate_log_partition_batch(**arrays)
    draws = collect_draws(**arrays, reward_range=(0.0, 1.0))
    v = linear_weights(draws.log_w) * draws.soft
    weight = np.where(draws.sum(v) > 0, hit_weight(draws, v), 1.0)
    own = log_z_from_q(np.minimum((draws.sum(v) + 0.5 * weight) / draws.counts, 1.0), BETA, (0.0, 1.0))
    hits = draws.sum(np.where(draws.from_reference, draws.rewards, 0.0))
    rate = estimate_log_partition_batch(**arrays, method="pass_rate").log_z
    return hits, default.interval_low, default.interval_high, default.log_z, own, rate


if __name__ == "__main__":
    fill("poor_overlap", markdown())
