"""Figures of the partition stage: the estimates, and how far they can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from disa.display.figures import FLAGGED, GUIDE, MANY, UNFLAGGED, Figure, name_curves, new_axes
from disa.partition.verdict import MAX_INTERVAL_WIDTH, MIN_HITS_ESS
from disa.runs.records import PartitionEstimate

Array = NDArray[Any]


def partition_figures(
    estimates: Sequence[PartitionEstimate],
    beta: float,
    reward_range: tuple[float, float],
    *,
    binary: bool,
    coverage: Mapping[str, Any] | None = None,
) -> list[Figure]:
    """Draw log Z in nats, its evidence and its flags; none without estimates.

    ``binary`` says whether every reward was one of the range's ends; ``coverage`` is the partition manifest's profile.
    """
    if not estimates:
        return []
    figures = [
        _log_z(estimates, beta, reward_range),
        _log_z_against_pass_rate(estimates, beta, reward_range, binary),
        _effective_sample_sizes(estimates),
        _flags(estimates),
    ]
    if coverage is None or coverage.get("share") is None:
        return figures
    return [*figures, _coverage(coverage)]


def _log_z(estimates: Sequence[PartitionEstimate], beta: float, reward_range: tuple[float, float]) -> Figure:
    drawing, axes = new_axes("Estimates of log Z, sorted", "prompts, sorted by estimate", "log Z (nats)")
    ordered = sorted(estimates, key=lambda e: (e.log_z, e.prompt_id))
    rank = np.arange(1, len(ordered) + 1)
    log_z, low, high = _columns(ordered, "log_z", "interval_low", "interval_high")
    flagged = np.array([bool(e.flags) for e in ordered])
    width = float(np.clip(250 / len(ordered), 0.5, 3.0))
    _draw(axes, rank, log_z, low, high, flagged, alpha=0.4, linewidth=width, size=6 + 2 * width)
    name_curves(axes)
    methods = ", ".join(f"{method} {n}" for method, n in sorted(Counter(e.method for e in estimates).items()))
    ends = " and ".join(f"{beta * reward:g}" for reward in reward_range)
    caption = (
        f"{len(estimates)} prompts (method: {methods}). Median log Z {np.median(log_z):.2f} nats, from "
        f"{log_z[0]:.2f} to {log_z[-1]:.2f}; with rewards from {reward_range[0]:g} to {reward_range[1]:g} and "
        f"beta = {beta:g} it lies between {ends}. The median interval is {np.median(high - low):.2f} nats wide; "
        f"{np.sum(high - low > MAX_INTERVAL_WIDTH)} are wider than {MAX_INTERVAL_WIDTH:g} nats. "
        f"{flagged.sum()} of {len(estimates)} prompts are flagged."
    )
    return Figure("log_z", drawing, caption)


def _log_z_against_pass_rate(
    estimates: Sequence[PartitionEstimate], beta: float, reward_range: tuple[float, float], binary: bool
) -> Figure:
    drawing, axes = new_axes("log Z against the mean reward", "mean reward of the reference's draws", "log Z (nats)")
    # A prompt without reference draws has no rate; where none has any, all stand at the smallest reward.
    measured = [e for e in estimates if e.n_reference] or estimates
    ordered = sorted(measured, key=lambda e: (e.mean_reward_reference, e.log_z, e.prompt_id))
    rate, log_z, low, high = _columns(ordered, "mean_reward_reference", "log_z", "interval_low", "interval_high")
    rate = np.where([e.n_reference > 0 for e in ordered], rate, reward_range[0])
    flagged = np.array([bool(e.flags) for e in ordered])
    _draw(axes, _spread(rate), log_z, low, high, flagged, alpha=0.25, linewidth=0.8, size=9)
    bottom, span = reward_range[0], reward_range[1] - reward_range[0]
    share = np.linspace(0, 1, 400) ** 3  # denser near 0, where the curve is steep
    curve = bottom + span * share[share <= max(1e-9, 1.05 * (rate.max() - bottom) / span)]
    axes.plot(
        curve,
        largest_log_mean(curve, beta, reward_range),
        color=GUIDE,
        linestyle="--",
        label="rewards at the ends only",
    )
    upper, lower = largest_log_mean(rate, beta, reward_range), beta * rate
    if binary:
        inside = np.sum((low <= upper) & (upper <= high))
        claim = (
            "Rewards lie at the ends of their range, so log Z is exactly the dashed curve at the reference's true mean "
            f"reward. {inside} of {len(ordered)} intervals contain the curve at the measured one"
        )
    else:
        axes.plot(curve, beta * curve, color=GUIDE, linestyle=":", label="one reward for all")
        inside = np.sum((low <= upper) & (lower <= high))
        claim = (
            "log Z at the reference's true mean reward lies between the dotted line (that reward for every completion) "
            "and the dashed curve (rewards at the ends of their range only). "
            f"{inside} of {len(ordered)} intervals reach between them at the measured one"
        )
    name_curves(axes)
    caption = (
        f"{claim}, which is itself noisy (median {np.median([e.n_reference for e in ordered]):.0f} reference draws per "
        f"prompt). For {np.sum(rate == bottom)} prompts no reference draw earned more than the smallest reward. Dots "
        "of one mean reward are spread sideways."
    )
    return Figure("log_z_pass_rate", drawing, caption)


def largest_log_mean(reward: np.ndarray, beta: float, reward_range: tuple[float, float]) -> np.ndarray:
    """``log E exp(beta r)`` of rewards at the ends of their range with mean ``reward``: the most it can be."""
    low, high = reward_range
    share = np.clip((reward - low) / (high - low), 0.0, 1.0)
    with np.errstate(divide="ignore"):  # at either end one of the two has no share
        return np.logaddexp(beta * low + np.log1p(-share), beta * high + np.log(share))


def _draw(
    axes: Axes,
    x: Array,
    y: Array,
    low: Array,
    high: Array,
    flagged: Array,
    *,
    alpha: float,
    linewidth: float,
    size: float,
) -> None:
    """Estimates with their intervals, flagged ones in another colour, and their names below."""
    for mask, colour, label in ((~flagged, UNFLAGGED, "not flagged"), (flagged, FLAGGED, "flagged")):
        if mask.any():
            many: dict[str, Any] = {"rasterized": len(x) > MANY}
            axes.vlines(x[mask], low[mask], high[mask], color=colour, alpha=alpha, linewidth=linewidth, **many)
            axes.scatter(x[mask], y[mask], color=colour, s=size, label=f"{label} ({mask.sum()})", **many)


def _effective_sample_sizes(estimates: Sequence[PartitionEstimate]) -> Figure:
    drawing, axes = new_axes("Evidence behind each estimate", "prompts, each curve sorted (%)", "effective draws")
    n = len(estimates)
    percent = 100 * np.arange(1, n + 1) / n
    ess, hits = _columns(estimates, "ess", "hits_ess")
    axes.step(percent, np.sort(ess), where="mid", color="#009E73", linewidth=2, label="ESS, all draws")
    axes.step(percent, np.sort(hits), where="mid", color="#CC79A7", linewidth=2, label="hits ESS, rewarded draws")
    axes.axhline(MIN_HITS_ESS, color=GUIDE, linestyle="--", label=f"flagged below {MIN_HITS_ESS:g} hits")
    axes.set_yscale("symlog", linthresh=1)  # 0 is a real value here
    axes.set_ylim(0, 2 * max(ess.max(), MIN_HITS_ESS))
    ticks = [0, 1, *(t for t in (5, 10, 50, 100, 500, 1000, 5000) if t < 2 * ess.max())]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    name_curves(axes)
    (draws,) = _columns(estimates, "n")
    caption = (
        f"Of {np.median(draws):.0f} draws per prompt (median; {draws.min():.0f} to {draws.max():.0f}), weighting "
        f"leaves {np.median(ess):.0f} effective and {np.median(hits):.1f} effective rewarded draws at the median "
        f"prompt. {np.sum(hits < MIN_HITS_ESS)} of {n} prompts rest on fewer than {MIN_HITS_ESS:g} "
        "effective rewarded draws."
    )
    return Figure("ess", drawing, caption)


def _flags(estimates: Sequence[PartitionEstimate]) -> Figure:
    counts = Counter(flag for e in estimates for flag in set(e.flags))
    bars = [("not flagged", sum(not e.flags for e in estimates)), *sorted(counts.items(), key=lambda c: (-c[1], c[0]))]
    drawing, axes = new_axes("Flags", "prompts", "")
    colours = [UNFLAGGED] + [FLAGGED] * (len(bars) - 1)
    drawn = axes.barh([name for name, _ in bars], [n for _, n in bars], color=colours, height=min(0.7, 0.2 * len(bars)))
    axes.bar_label(drawn, padding=3)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    caption = f"{len(estimates) - bars[0][1]} of {len(estimates)} prompts carry at least one flag" + (
        ": " + ", ".join(f"{name} {n}" for name, n in bars[1:]) + ". A prompt can carry several." if counts else "."
    )
    return Figure("flags", drawing, caption)


def _coverage(coverage: Mapping[str, Any]) -> Figure:
    drawing, axes = new_axes("Coverage of the reference's successes", "log(pi_ref / mu), nats", "share at or above")
    nats, share = coverage["nats"], coverage["share"]
    axes.plot(nats, share, "o-", color=UNFLAGGED)
    axes.set_ylim(-0.03, 1.03)
    caption = (
        "Share of the reference's rewarded draws that the proposal writes at least exp(t) times less often than the "
        "reference, against t: "
        + ", ".join(f"{s:.0%} at {t:g}" for t, s in zip(nats, share, strict=True))
        + ". What lies far to the right has to come from the reference's own draws."
    )
    return Figure("coverage", drawing, caption)


def _columns(estimates: Sequence[PartitionEstimate], *names: str) -> list[np.ndarray]:
    return [np.array([getattr(e, name) for e in estimates], dtype=np.float64) for name in names]


def _spread(values: np.ndarray) -> np.ndarray:
    """Sorted values with ties spread sideways by at most a third of the smallest gap."""
    distinct, counts = np.unique(values, return_counts=True)
    reach = 0.33 * (np.diff(distinct).min() if len(distinct) > 1 else 0.03)
    reach = min(reach, 0.015)
    offsets = [np.linspace(-reach, reach, n) if n > 1 else np.zeros(1) for n in counts]
    return values + np.concatenate(offsets)
