"""Measure estimators of log Z against exact values on an enumerated model.

Twelve prompts with reference success probabilities 0.4, 0.06 and 0.003 on the oracle with vocabulary 6 and length
limit 8. Every method spends the same N draws per prompt: ``mixture`` and ``anchored, mixed`` a quarter of them
on the reference, ``pass_rate`` all, the others none. Fills the marked block of the page and draws its figure::

    OMP_NUM_THREADS=1 python benchmarks/estimator_accuracy.py --replicates 150
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from disa.partition import estimate_log_partition_batch
from disa.partition.estimate import Interval
from disa.partition.log_weights import log_z_from_q
from disa.testing import (
    PROPOSALS,
    EnumerableModel,
    Space,
    binary_reward,
    expectation,
    log_partition,
    make_proposal,
    random_model,
)
from disa.testing.proposals import Strength
from page import FIGURES, PAGE, fill

Array = NDArray[np.float64]
SUCCESS = np.repeat([0.4, 0.06, 0.003], 4)
PROMPTS = len(SUCCESS)
BETAS = (1.0, 5.0, 15.0)
SIZES = (8, 32, 128, 512)
REFERENCE_SHARE = 0.25
LEVEL = 0.9
INTERVALS: tuple[Interval, ...] = ("gamma", "betting")
CRITERION, CRITERION_SIZE = 1.15, 32

# Estimator and share of reference draws, by column.
METHODS = {
    "mixture": ("mixture", REFERENCE_SHARE),
    "anchored, mixed": ("anchored", REFERENCE_SHARE),
    "anchored": ("anchored", 0.0),
    "is": ("is", 0.0),
    "tis": ("tis", 0.0),
    "psis": ("psis", 0.0),
    "snis": ("snis", 0.0),
    "pass_rate": ("pass_rate", 1.0),
}
DEFAULT = "mixture"

# From the reference itself to a proposal that only writes few, mostly correct completions.
LADDER = {
    "reference": Strength(0.0),
    "g = 0.25": Strength(0.25, noise=0.1),
    "g = 0.5": Strength(0.5, noise=0.2),
    "g = 1": Strength(1.0, noise=0.3),
    "g = 1, T = 0.8": Strength(1.0, noise=0.3, temperature=0.8),
    "g = 1, T = 0.6": Strength(1.0, noise=0.3, temperature=0.6),
    "g = 1, T = 0.45": Strength(1.0, noise=0.3, temperature=0.45),
}
LADDER_SIZE = 32
LADDER_METHODS = ("mixture", "anchored", "is", "snis", "pass_rate")


class Pool(NamedTuple):
    """Draws of one model with everything the estimators need, each of shape (prompts, replicates, draws)."""

    rewards: Array
    log_ref: Array
    log_proposal: Array
    lengths: Array

    def first(self, draws: int) -> Pool:
        """Return the first draws of every replicate."""
        return Pool(*(field[..., :draws] for field in self))


class World:
    """The reference, its rewards, and its exact log Z."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.reference = random_model(Space(), PROMPTS, self.rng)
        self.rewards = binary_reward(self.reference, SUCCESS, self.rng)

    def log_z(self, beta: float) -> Array:
        """Exact log Z, shape (prompts,)."""
        return log_partition(self.reference.log_probs, self.rewards, beta)

    def proposal(self, strength: Strength) -> EnumerableModel:
        """Proposal for these rewards."""
        return make_proposal(self.reference, self.rewards, strength, self.rng)

    def pools(self, proposal: EnumerableModel, replicates: int, draws: int) -> tuple[Pool, Pool]:
        """Independent draws from the reference and from the proposal."""
        pools = []
        for model in (self.reference, proposal):
            drawn = model.sample(self.rng, replicates * draws).reshape(PROMPTS, replicates, draws)
            prompt = np.arange(PROMPTS)[:, None, None]
            pools.append(
                Pool(
                    self.rewards[prompt, drawn],
                    self.reference.log_probs[prompt, drawn],
                    proposal.log_probs[prompt, drawn],
                    self.reference.space.lengths[drawn].astype(np.float64),
                )
            )
        return pools[0], pools[1]


class Estimates(NamedTuple):
    """Estimates of q of every replicate and prompt, shape (replicates, prompts)."""

    q: Array
    low: Array
    high: Array
    gated: NDArray[np.bool_]

    def log_z(self, beta: float) -> Array:
        """Estimates of log Z: rewards of 0 and 1 have the same q at every beta."""
        return log_z_from_q(self.q, beta, (0.0, 1.0))


def estimate(pools: tuple[Pool, Pool], name: str, beta: float, size: int, interval: Interval = "gamma") -> Estimates:
    """Estimates of one column; where the gate pools prompts, those of one replicate, as a run of the pipeline does."""
    method, share = METHODS[name]
    n_reference = round(share * size)
    reference, proposal = pools[0].first(n_reference), pools[1].first(size - n_reference)
    both = Pool(*(np.concatenate(fields, axis=2) for fields in zip(reference, proposal, strict=True)))
    replicates = both.rewards.shape[1]
    # Only the gate looks across prompts: without it all replicates are one batch.
    at_once = 1 if method == "mixture" else replicates
    batches = [
        estimate_log_partition_batch(
            **{name: field[:, first : first + at_once].ravel() for name, field in both._asdict().items()},
            prompt_index=np.repeat(np.arange(PROMPTS * at_once), size),
            from_reference=np.tile(np.arange(size) < n_reference, PROMPTS * at_once),
            beta=beta,
            method=method,
            interval=interval,
            level=LEVEL,
        )
        for first in range(0, replicates, at_once)
    ]

    def field(values: list[Array]) -> Array:
        return np.stack(values).reshape(-1, PROMPTS, at_once).swapaxes(1, 2).reshape(replicates, PROMPTS)

    def q_of(log_z: Array) -> Array:
        return np.expm1(log_z) / np.expm1(beta)

    return Estimates(
        q=field([batch.q for batch in batches]),
        low=q_of(field([batch.interval_low for batch in batches])),
        high=q_of(field([batch.interval_high for batch in batches])),
        gated=field([np.array(["gated" in flags for flags in batch.flags]) for batch in batches]).astype(bool),
    )


def measure(world: World, replicates: int) -> list[dict[str, Any]]:
    """One record per cell: RMSE of every method with its standard error, coverage and width of the intervals."""
    cells = []
    for name, strength in PROPOSALS.items():
        pools = world.pools(world.proposal(strength), replicates, max(SIZES))
        for size in SIZES:
            start = time.perf_counter()
            default = {interval: estimate(pools, DEFAULT, BETAS[-1], size, interval) for interval in INTERVALS}
            for beta in BETAS:
                key = {"proposal": name, "beta": beta, "N": size}
                cells.append(key | _cell(world.log_z(beta), pools, beta, size, default))
            print(f"{name:>8} N {size:3d}: {time.perf_counter() - start:5.1f} s", flush=True)
    return sorted(cells, key=lambda c: [list(PROPOSALS).index(c["proposal"]), c["beta"], c["N"]])


def _cell(
    exact: Array, pools: tuple[Pool, Pool], beta: float, size: int, default: dict[Interval, Estimates]
) -> dict[str, Any]:
    cell: dict[str, Any] = {"rmse": {}, "error": {}, "coverage": {}, "width": {}}
    for column in METHODS:
        found = default["gamma"] if column == DEFAULT else estimate(pools, column, beta, size)
        squares = (found.log_z(beta) - exact) ** 2
        rmse = np.sqrt(squares.mean())
        cell["rmse"][column] = rmse
        # Replicates are independent, prompts are a fixed set; delta method for the root.
        cell["error"][column] = squares.mean(axis=1).std(ddof=1) / np.sqrt(len(squares)) / (2 * rmse)
    cell["gated"] = default["gamma"].gated.mean()
    for interval, found in default.items():
        low, high = (log_z_from_q(end, beta, (0.0, 1.0)) for end in (found.low, found.high))
        # An interval's end may equal the exact value up to rounding, at log Z = beta for example.
        cell["coverage"][interval] = np.mean((low <= exact + 1e-12) & (exact <= high + 1e-12))
        cell["width"][interval] = np.mean(high - low)
    best = min(cell["rmse"].values())
    cell["to_best"] = cell["rmse"][DEFAULT] / best
    cell["to_pass_rate"] = cell["rmse"][DEFAULT] / cell["rmse"]["pass_rate"]
    return cell


def markdown(world: World, cells: list[dict[str, Any]], replicates: int, seed: int) -> str:
    """Everything between the page's markers."""
    worst = max(e / r for c in cells for e, r in zip(c["error"].values(), c["rmse"].values(), strict=True))
    under = [c for c in cells for i in INTERVALS if c["coverage"][i] < LEVEL]
    command = f"python benchmarks/estimator_accuracy.py --replicates {replicates} --seed {seed}"
    lines = [
        f"Written by `{command}`: {PROMPTS} prompts, {replicates} replicates. Relative standard error of an RMSE:"
        f" at most {worst:.0%}.",
        "",
        _criterion(cells, "to_best", "the best method of the cell"),
        _criterion(cells, "to_pass_rate", "the pass rate of the same number of draws"),
        f"- Intervals of nominal {LEVEL:.0%} that cover less: {len(under)} of {len(INTERVALS) * len(cells)}"
        + f" (lowest coverage {min(c['coverage'][i] for c in cells for i in INTERVALS):.3f}).",
        "",
    ]
    for beta in BETAS:
        lines += [f"### RMSE of log Z in nats, beta = {beta:g}", ""]
        lines += _header("proposal", "N", *METHODS, "default / best", "default / pass rate")
        for c in (c for c in cells if c["beta"] == beta):
            best = min(c["rmse"].values())
            rmse = [f"**{v:.3f}**" if v == best else f"{v:.3f}" for v in c["rmse"].values()]
            lines.append(_row(c["proposal"], c["N"], *rmse, f"{c['to_best']:.2f}", f"{c['to_pass_rate']:.2f}"))
        lines.append("")
    lines += [f"### Intervals of the default at level {LEVEL:g}", ""]
    columns = [f"{what}, {interval}" for interval in INTERVALS for what in ("coverage", "width")]
    lines += _header("proposal", "beta", "N", *columns, "gated")
    for c in cells:
        values = [f"{c[what][interval]:.3f}" for interval in INTERVALS for what in ("coverage", "width")]
        lines.append(_row(c["proposal"], f"{c['beta']:g}", c["N"], *values, f"{c['gated']:.0%}"))
    lines += ["", "Exact reference success probabilities: "]
    lines[-1] += ", ".join(f"{p:.4f}" for p in expectation(world.reference.log_probs, world.rewards)) + "."
    return "\n".join(lines)


def _criterion(cells: list[dict[str, Any]], ratio: str, of_what: str) -> str:
    """How many cells with enough draws meet the criterion, and the others by name."""
    large = [c for c in cells if c["N"] >= CRITERION_SIZE]
    missed = [c for c in large if c[ratio] > CRITERION]
    small = max((c for c in cells if c["N"] < CRITERION_SIZE), key=lambda c: c[ratio])
    found = (
        f"- Within {CRITERION} times {of_what}, N >= {CRITERION_SIZE}: {len(large) - len(missed)} of {len(large)} cells"
    )
    found += "".join(f"; missed by {_name(c)}: {c[ratio]:.2f}" for c in missed)
    return found + (
        f". Median ratio {np.median([c[ratio] for c in large]):.2f}, largest {max(c[ratio] for c in large):.2f}; "
        f"below N = {CRITERION_SIZE} the largest is {small[ratio]:.2f} ({_name(small)})."
    )


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['proposal']}, beta {cell['beta']:g}, N {cell['N']}"


def _header(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*values: object) -> str:
    return "| " + " | ".join(str(v) for v in values) + " |"


def ladder(world: World, replicates: int) -> dict[tuple[str, str, float], tuple[float, float]]:
    """Mean squared bias and mean variance over prompts, by strength, method and beta."""
    result = {}
    for rung, strength in LADDER.items():
        pools = world.pools(world.proposal(strength), replicates, LADDER_SIZE)
        for column in LADDER_METHODS:
            same = estimate(pools, column, BETAS[-1], LADDER_SIZE) if column != "is" else None
            for beta in BETAS:
                log_z = (same or estimate(pools, column, beta, LADDER_SIZE)).log_z(beta)
                variance = log_z.var(axis=0, ddof=1)
                # The squared mean error still holds the variance of the mean.
                bias = (log_z.mean(axis=0) - world.log_z(beta)) ** 2 - variance / replicates
                result[rung, column, beta] = (max(bias.mean(), 0.0), variance.mean())
    return result


def draw(result: dict[tuple[str, str, float], tuple[float, float]], path: Path) -> None:
    """Squared bias and variance against the proposal's strength, one panel a beta."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(LADDER_METHODS, ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#7F7F7F"), strict=True))
    figure, panels = plt.subplots(2, len(BETAS), figsize=(12, 6.5), sharex=True, sharey="row", layout="constrained")
    for column, beta in enumerate(BETAS):
        for row, quantity in enumerate(("squared bias", "variance")):
            axes = panels[row][column]
            for method, colour in colours.items():
                values = [result[rung, method, beta][row] for rung in LADDER]
                axes.plot(range(len(LADDER)), np.maximum(values, 1e-5), "o-", color=colour, label=method, markersize=4)
            axes.set_yscale("log")
            axes.set_title(f"beta = {beta:g}" if row == 0 else "")
            axes.set_ylabel(f"{quantity} of log Z (nats²)" if column == 0 else "")
            axes.grid(alpha=0.3)
            axes.set_xticks(range(len(LADDER)), list(LADDER), rotation=40, ha="right")
    panels[0][0].legend(fontsize=8)
    figure.suptitle(f"Error of log Z against the proposal's strength, N = {LADDER_SIZE} draws per prompt")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, fill the page, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=150, help="replicates of every cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    parser.add_argument("--figure", type=Path, default=FIGURES / "estimator_bias_variance.png")
    options = parser.parse_args()
    world = World(options.seed)
    text = markdown(world, measure(world, options.replicates), options.replicates, options.seed)
    fill("estimator_accuracy", text, options.page)
    draw(ladder(world, options.replicates), options.figure)
    print(text)
    print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
