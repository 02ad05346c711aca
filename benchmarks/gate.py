"""The overlap gate on simulated long completions, D estimated from the draws.

Prompts that the reference solves with probability 0.05 and the proposal with 0.5. Their solutions differ by 0.01 nats a
token, normal log ratios of mean d and variance 2 d, so that KL(reference given success || proposal given success) is
d = 0.01 times the tokens of the prompt's completions; they are spread by half around 100 D. The gate sees lengths and
log-probabilities only. All methods get the same number of draws::

    OMP_NUM_THREADS=1 python benchmarks/gate.py
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_loop import adaptive_budget
from disa.partition import LogPartitionBatch, estimate_log_partition_batch
from disa.partition.draws import collect_draws, trajectory_arrays
from disa.partition.gate import gated_prompts, proposal_divergence
from disa.partition.log_weights import log_z_from_q
from disa.runs.records import ScoredTrajectory
from page import fill, spread, table

Array = NDArray[np.float64]
PROMPTS, DRAWS, REFERENCE_DRAWS = 100, 128, 32
P_REFERENCE, P_PROPOSAL = 0.05, 0.5
BETA = 15.0
NATS_PER_TOKEN = 0.01
DIVERGENCES = (1.0, 2.0, 5.0, 10.0, 20.0)
# A pilot of 16 holds four reference draws; neither cap nor precision stops before the budget does.
PILOT, CAP, PRECISION = 16, 4 * DRAWS, 1e-3
TOLERANCE = 1.15


class LongCompletions:
    """Prompts whose completions are long, by the mean of their D."""

    def __init__(self, rng: np.random.Generator, mean_d: float) -> None:
        self.rng = rng
        self.tokens = np.rint(mean_d / NATS_PER_TOKEN * rng.uniform(0.5, 1.5, PROMPTS)).astype(int)

    def draw(self, prompt: int, n: int, source: str) -> list[ScoredTrajectory]:
        """Draw n scored trajectories; log-probabilities lack a constant that both models share."""
        d, sign = NATS_PER_TOKEN * self.tokens[prompt], 1.0 if source == "reference" else -1.0
        passed = self.rng.random(n) < (P_REFERENCE if source == "reference" else P_PROPOSAL)
        odds = np.where(passed, np.log(P_REFERENCE / P_PROPOSAL), np.log((1 - P_REFERENCE) / (1 - P_PROPOSAL)))
        log_ratio = odds + self.rng.normal(sign * d, np.sqrt(2 * d), n)
        # Only the number of tokens counts.
        tokens = [0] * self.tokens[prompt]
        return [
            ScoredTrajectory(str(prompt), 0, source, "", tokens, False, at if sign > 0 else 0.0, at, 0.0, r)
            for at, r in zip(log_ratio.tolist(), passed.astype(float).tolist(), strict=True)
        ]

    def even(self, reference_draws: int, draws: int = DRAWS) -> dict[str, Any]:
        """Draw the same numbers for every prompt, as arrays."""
        sizes = {"reference": reference_draws, "proposal": draws - reference_draws}
        rows = [[row for s, n in sizes.items() for row in self.draw(i, n, s)] for i in range(PROMPTS)]
        return trajectory_arrays(rows) | {"beta": BETA}


def replicate(seed: int, mean_d: float) -> dict[str, float]:
    """RMSE over prompts of every method, and what the gate saw and did."""
    problem = LongCompletions(np.random.default_rng(seed), mean_d)
    exact = log_z_from_q(np.array(P_REFERENCE), BETA, (0.0, 1.0))

    def rmse(estimate: LogPartitionBatch) -> float:
        return float(np.sqrt(np.mean((estimate.log_z - exact) ** 2)))

    mixed = problem.even(REFERENCE_DRAWS)
    draws = collect_draws(**mixed, reward_range=(0.0, 1.0))
    default = estimate_log_partition_batch(**mixed)
    spent = adaptive_budget(
        problem.draw,
        prompts=PROMPTS,
        budget=PROMPTS * DRAWS,
        pilot=PILOT,
        cap=CAP,
        beta=BETA,
        precision=PRECISION,
    )
    assert spent.spent == PROMPTS * DRAWS
    return {
        "D, estimated": float(np.median(proposal_divergence(draws)[0])) + np.log(P_PROPOSAL),
        "gated": gated_prompts(draws).mean(),
        "importance sampling": rmse(estimate_log_partition_batch(**problem.even(0), method="is")),
        "default": rmse(default),
        "pass rate of its reference draws": rmse(estimate_log_partition_batch(**mixed, method="pass_rate")),
        "default, adaptive budget": rmse(spent.estimates),
        "gated, adaptive": np.mean(["gated" in flags for flags in spent.estimates.flags]),
        "pass rate": rmse(estimate_log_partition_batch(**problem.even(DRAWS), method="pass_rate")),
    }


def markdown(results: dict[float, dict[str, Array]], seeds: int) -> str:
    """Everything between the page's markers."""
    errors = [name for name in results[1.0] if name not in ("D, estimated", "gated", "gated, adaptive")]
    rows, verdicts = [], []
    for d, cell in results.items():
        topped_up = np.mean(cell["default, adaptive budget"]) / np.mean(cell["pass rate"])
        in_place = np.mean(cell["default"]) / np.mean(cell["pass rate of its reference draws"])
        shares = [f"{np.mean(cell[name]):.0%}" for name in ("gated", "gated, adaptive")]
        rows.append(
            [f"{d:g}", f"{np.mean(cell['D, estimated']):.1f}", *shares, *(spread(cell[name]) for name in errors)]
            + [f"{topped_up:.2f}", f"{in_place:.2f}"]
        )
        verdicts.append((d, topped_up, in_place))
    header = ["D", "D, estimated", "gated", "gated, adaptive", *errors, "adaptive / pass rate", "default / its own"]
    return "\n".join(
        [
            f"Written by `python benchmarks/gate.py --seeds {seeds}`: RMSE of log Z in nats, beta {BETA:g}, {PROMPTS} "
            f"prompts, {DRAWS} draws per prompt on average, {REFERENCE_DRAWS} of them from the reference unless the "
            f"budget is adaptive (pilot {PILOT}); mean and standard error over seeds 0 to {seeds - 1}.",
            "",
            _criterion("Default, against the pass rate of the same reference draws", [(d, b) for d, _, b in verdicts]),
            _criterion("Adaptive budget, against the pass rate of as many draws", [(d, a) for d, a, _ in verdicts]),
            "",
            *table(header, rows),
        ]
    )


def _criterion(what: str, ratios: list[tuple[float, float]]) -> str:
    missed = "".join(f"; missed at D = {d:g}: {ratio:.2f}" for d, ratio in ratios if ratio > TOLERANCE)
    return f"- {what}: within {TOLERANCE} times at {sum(r <= TOLERANCE for _, r in ratios)} of {len(ratios)} D{missed}."


def main() -> None:
    """Measure and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    results = {}
    for d in DIVERGENCES:
        rows = [replicate(seed, d) for seed in range(options.seeds)]
        results[d] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        print(f"D {d:g}: " + ", ".join(f"{name} {np.mean(v):.3f}" for name, v in results[d].items()), flush=True)
    fill("gate", markdown(results, options.seeds))


if __name__ == "__main__":
    main()
