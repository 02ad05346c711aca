"""Adaptive against uniform allocation of trajectories at equal total budget, and drawing again where log Z is flagged.

Completions of prompt x are numbers y, drawn by the reference from N(0, 1) and by the proposal from N(m_x, 1);
the reward is 1 where y > t_x. So q = P(N(0, 1) > t_x) is exact; it runs from 0.5 down to ``--hardest``. m_x
lies anywhere between 0 (the reference itself) and t_x (a good proposal); in the second half of the table a third
of the prompts have a proposal that moves away from the solutions instead, m_x = -2::

    OMP_NUM_THREADS=1 python benchmarks/budget.py --replicates 40
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from adaptive_loop import adaptive_budget
from disa.partition import LogPartitionBatch, estimate_log_partition_batch
from disa.partition.draws import trajectory_arrays
from disa.partition.log_weights import log_z_from_q
from disa.partition.plan import resample_flagged
from disa.runs.records import ScoredTrajectory
from page import fill, spread, table

Array = NDArray[np.float64]
PROMPTS = 100
PER_PROMPT = 64
PILOT = 16
CAP = 512
REFERENCE_SHARE = 0.25
MISLED_MEAN = -2.0
# Neither stops early here: both spend the whole budget.
PRECISION = 1e-3
RESAMPLED = 20
"""Draws a prompt before those with a flag are drawn for again, twice: in all about as many as the others spend."""


class GaussianShift:
    """A set of prompts and the means of its proposal."""

    def __init__(self, rng: np.random.Generator, hardest: float, misled: int) -> None:
        self.rng = rng
        self.q = np.exp(rng.uniform(np.log(hardest), np.log(0.5), PROMPTS))
        self.threshold = -ndtri(self.q)
        self.mean = rng.random(PROMPTS) * self.threshold
        self.mean[:misled] = MISLED_MEAN

    def draw(self, prompt: int, n: int, source: str) -> list[ScoredTrajectory]:
        """Draw n scored trajectories; log-probabilities lack the constant both models share."""
        mean = self.mean[prompt]
        y = self.rng.normal(0.0 if source == "reference" else mean, 1.0, n)
        reward = (y > self.threshold[prompt]).astype(np.float64)
        columns = (y, -0.5 * y**2, -0.5 * (y - mean) ** 2, reward)
        return [
            ScoredTrajectory(
                prompt_id=str(prompt),
                draw=0,
                source=source,
                completion=f"{at:.6f}",
                completion_ids=[0],
                truncated=False,
                log_sampler=log_ref if source == "reference" else log_proposal,
                log_ref=log_ref,
                log_proposal=log_proposal,
                reward=r,
            )
            for at, log_ref, log_proposal, r in zip(*(c.tolist() for c in columns), strict=True)
        ]


def uniform(problem: GaussianShift, beta: float) -> LogPartitionBatch:
    """Every prompt gets the same number of draws."""
    reference = int(REFERENCE_SHARE * PER_PROMPT)
    rows = [
        [*problem.draw(i, reference, "reference"), *problem.draw(i, PER_PROMPT - reference, "proposal")]
        for i in range(PROMPTS)
    ]
    return estimate_log_partition_batch(**trajectory_arrays(rows), beta=beta)


def adaptive(problem: GaussianShift, beta: float, rounds: int) -> LogPartitionBatch:
    """Pilot, then Neyman allocation of the rest."""
    result = adaptive_budget(
        problem.draw,
        prompts=PROMPTS,
        budget=PROMPTS * PER_PROMPT,
        pilot=PILOT,
        cap=CAP,
        beta=beta,
        reference_share=REFERENCE_SHARE,
        precision=PRECISION,
        rounds=rounds,
    )
    assert result.spent == PROMPTS * PER_PROMPT
    return result.estimates


def resample(problem: GaussianShift, beta: float) -> LogPartitionBatch:
    """Fewer draws for every prompt, then twice as many again for those whose log Z is flagged."""
    reference = int(REFERENCE_SHARE * RESAMPLED)
    rows = [
        [*problem.draw(i, reference, "reference"), *problem.draw(i, RESAMPLED - reference, "proposal")]
        for i in range(PROMPTS)
    ]
    for _ in range(2):
        known = estimate_log_partition_batch(**trajectory_arrays(rows), beta=beta)
        flags = {str(i): names for i, names in enumerate(known.flags)}
        for prompt, draws in resample_flagged([row for drawn in rows for row in drawn], flags).items():
            for source, numbers in draws.items():
                rows[int(prompt)] += problem.draw(int(prompt), len(numbers), source)
    return estimate_log_partition_batch(**trajectory_arrays(rows), beta=beta)


def measure(estimate: LogPartitionBatch, log_z: Array) -> dict[str, float]:
    """Mean squared error and bias over prompts (nats), share of intervals that hold the truth, draws per prompt."""
    error = estimate.log_z - log_z
    covered = (estimate.interval_low <= log_z) & (log_z <= estimate.interval_high)
    found = {"mse": error**2, "bias": error, "coverage": covered, "draws": estimate.n}
    return {name: np.mean(values) for name, values in found.items()}


def main() -> None:
    """Run all replicates and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=40)
    parser.add_argument("--hardest", type=float, default=1e-3, help="smallest success probability")
    options = parser.parse_args()
    methods: dict[str, Any] = {
        "uniform": uniform,
        "adaptive, 1 round": lambda problem, beta: adaptive(problem, beta, 1),
        "adaptive, 3 rounds": lambda problem, beta: adaptive(problem, beta, 3),
        f"from {RESAMPLED}, flagged doubled twice": resample,
    }
    rows = []
    for misled in (0, PROMPTS // 3):
        for beta in (5.0, 15.0):
            results: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
            for seed in range(options.replicates):
                for name, method in methods.items():
                    problem = GaussianShift(np.random.default_rng(seed), options.hardest, misled)
                    log_z = log_z_from_q(problem.q, beta, (0.0, 1.0))
                    results[name].append(measure(method(problem, beta), log_z))
            base = np.array([row["mse"] for row in results["uniform"]])
            for name, found in results.items():
                mse, bias, coverage, draws = (np.array([row[key] for row in found]) for key in found[0])
                gain = "" if name == "uniform" else f"{_ratio(mse, base)}"
                cells = [spread(mse), "" if name == "uniform" else spread(base - mse), gain]
                setting = [f"{beta:g}", misled, name, f"{draws.mean():.1f}"]
                rows.append([*setting, *cells, spread(bias), spread(coverage)])
                print(*rows[-1], sep=" | ", flush=True)
    header = ["beta", "misled", "allocation", "draws per prompt", "MSE", "uniform less this", "MSE over uniform"]
    header += ["bias", "coverage"]
    text = [
        f"Written by `python benchmarks/budget.py --replicates {options.replicates}`: {PROMPTS} prompts, {PER_PROMPT} "
        f"draws per prompt on average but in the last allocation, a quarter from the reference; success probabilities "
        f"log-uniform from {options.hardest:g} to 0.5. Pilot {PILOT}, cap {CAP}. *misled* counts prompts whose "
        f"proposal moves away from the solutions. Mean and standard error over replicates (seeds 0 to "
        f"{options.replicates - 1}), each with new prompts, the same for every allocation; nats squared and nats.",
        "",
        *table(header, rows),
    ]
    fill("budget", "\n".join(text))


def _ratio(mse: Array, base: Array) -> str:
    """Ratio of the means, with its standard error by the delta method on paired replicates."""
    ratio = mse.mean() / base.mean()
    error = np.std(mse - ratio * base, ddof=1) / np.sqrt(len(mse)) / base.mean()
    return f"{ratio:.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
