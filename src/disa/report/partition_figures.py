"""Figures of the partition stage: the estimates, and how far they can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disa.report.canvas import FLAGGED, GUIDE, UNFLAGGED, Plate, new_axes
from disa.runs.records import PartitionEstimate

FEW_HITS = 5.0
"""Below this many effective correct draws an estimate is flagged (``hits_ess < 5``)."""


def partition_plates(
    estimates: Sequence[PartitionEstimate], beta: float, coverage: Mapping[str, Any] | None = None
) -> list[Plate]:
    """Draw log Z in nats, its evidence and its flags; none without estimates.

    ``coverage`` is the partition manifest's profile: how much of the reference's successes the proposal writes less
    often, by how many nats.
    """
    if not estimates:
        return []
    plates = [
        _log_z(estimates, beta),
        _log_z_against_pass_rate(estimates, beta),
        _effective_sample_sizes(estimates),
        _flags(estimates),
    ]
    known = coverage is not None and coverage.get("share") is not None
    return [*plates, _coverage(coverage)] if known else plates


def _log_z(estimates: Sequence[PartitionEstimate], beta: float) -> Plate:
    figure, axes = new_axes("Estimates of log Z, sorted", "prompts, sorted by estimate", "log Z (nats)")
    ordered = sorted(estimates, key=lambda e: (e.log_z, e.prompt_id))
    rank = np.arange(1, len(ordered) + 1)
    log_z, low, high = _columns(ordered, "log_z", "interval_low", "interval_high")
    flagged = np.array([bool(e.flags) for e in ordered])
    width = float(np.clip(250 / len(ordered), 0.5, 3.0))
    for mask, colour, label in ((~flagged, UNFLAGGED, "not flagged"), (flagged, FLAGGED, "flagged")):
        if mask.any():
            axes.vlines(rank[mask], low[mask], high[mask], color=colour, alpha=0.4, linewidth=width)
            axes.scatter(rank[mask], log_z[mask], color=colour, s=6 + 2 * width, label=f"{label} ({mask.sum()})")
    axes.legend(loc="upper left")
    methods = ", ".join(f"{method} {n}" for method, n in sorted(Counter(e.method for e in estimates).items()))
    reading = (
        f"{len(estimates)} prompts (method: {methods}). Median log Z {np.median(log_z):.2f} nats, from "
        f"{log_z[0]:.2f} to {log_z[-1]:.2f}; with rewards from 0 to 1 it can lie between 0 and beta = {beta:g}. "
        f"The median interval is {np.median(high - low):.2f} nats wide; {np.sum(high - low > 2)} are wider than 2 "
        f"nats. {flagged.sum()} of {len(estimates)} prompts are flagged."
    )
    return Plate("log_z", figure, reading)


def _log_z_against_pass_rate(estimates: Sequence[PartitionEstimate], beta: float) -> Plate:
    figure, axes = new_axes("log Z against the pass rate", "mean reward of the reference's draws", "log Z (nats)")
    # A prompt without reference draws has no rate; where none has any, all stand at the smallest reward.
    measured = [e for e in estimates if e.n_reference] or estimates
    ordered = sorted(measured, key=lambda e: (e.mean_reward_reference, e.log_z, e.prompt_id))
    rate, log_z, low, high = _columns(ordered, "mean_reward_reference", "log_z", "interval_low", "interval_high")
    flagged = np.array([bool(e.flags) for e in ordered])
    x = _spread(rate)
    for mask, colour, label in ((~flagged, UNFLAGGED, "not flagged"), (flagged, FLAGGED, "flagged")):
        if mask.any():
            axes.vlines(x[mask], low[mask], high[mask], color=colour, alpha=0.25, linewidth=0.8)
            axes.scatter(x[mask], log_z[mask], color=colour, s=9, alpha=0.8, label=label)
    curve = np.linspace(0, 1, 400) ** 3  # denser near 0, where the curve is steep
    curve = curve[curve <= max(1e-9, 1.05 * rate.max())]
    axes.plot(curve, _identity(curve, beta), color=GUIDE, linestyle="--", label="log(1 + (exp(beta) - 1) p)")
    axes.legend(loc="lower right")
    inside = np.sum((low <= _identity(rate, beta)) & (_identity(rate, beta) <= high))
    reading = (
        "For rewards of 0 and 1, log Z is exactly the dashed curve at the true success rate p of the reference. "
        f"{inside} of {len(ordered)} intervals contain the curve at the measured rate, which is itself noisy (median "
        f"{np.median([e.n_reference for e in ordered]):.0f} reference draws a prompt). For {np.sum(rate == 0)} prompts "
        "no reference draw earned a reward. Dots of one rate are spread sideways."
    )
    return Plate("log_z_pass_rate", figure, reading)


def _effective_sample_sizes(estimates: Sequence[PartitionEstimate]) -> Plate:
    figure, axes = new_axes("Evidence behind each estimate", "prompts, each curve sorted (%)", "effective draws")
    n = len(estimates)
    percent = 100 * np.arange(1, n + 1) / n
    ess, hits = _columns(estimates, "ess", "hits_ess")
    axes.step(percent, np.sort(ess), where="mid", color="#009E73", linewidth=2, label="ESS, all draws")
    axes.step(percent, np.sort(hits), where="mid", color="#CC79A7", linewidth=2, label="hits ESS, rewarded draws")
    axes.axhline(FEW_HITS, color=GUIDE, linestyle="--", label=f"flagged below {FEW_HITS:g} hits")
    axes.set_yscale("symlog", linthresh=1)  # 0 is a real value here
    axes.set_ylim(0, 2 * max(ess.max(), FEW_HITS))
    ticks = [0, 1, *(t for t in (5, 10, 50, 100, 500, 1000, 5000) if t < 2 * ess.max())]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    (draws,) = _columns(estimates, "n")
    reading = (
        f"Of {np.median(draws):.0f} draws a prompt (median; {draws.min():.0f} to {draws.max():.0f}), weighting leaves "
        f"{np.median(ess):.0f} effective and {np.median(hits):.1f} effective rewarded draws at the median prompt. "
        f"{np.sum(hits < FEW_HITS)} of {n} prompts rest on fewer than {FEW_HITS:g} effective rewarded draws."
    )
    return Plate("ess", figure, reading)


def _flags(estimates: Sequence[PartitionEstimate]) -> Plate:
    counts = Counter(flag for e in estimates for flag in set(e.flags))
    bars = [("not flagged", sum(not e.flags for e in estimates)), *sorted(counts.items(), key=lambda c: (-c[1], c[0]))]
    figure, axes = new_axes("Flags", "prompts", "")
    colours = [UNFLAGGED] + [FLAGGED] * (len(bars) - 1)
    drawn = axes.barh([name for name, _ in bars], [n for _, n in bars], color=colours, height=min(0.7, 0.2 * len(bars)))
    axes.bar_label(drawn, padding=3)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    reading = f"{len(estimates) - bars[0][1]} of {len(estimates)} prompts carry at least one flag" + (
        ": " + ", ".join(f"{name} {n}" for name, n in bars[1:]) + ". A prompt can carry several." if counts else "."
    )
    return Plate("flags", figure, reading)


def _coverage(coverage: Mapping[str, Any]) -> Plate:
    figure, axes = new_axes("Coverage of the reference's successes", "log(pi_ref / mu), nats", "share at or above")
    nats, share = coverage["nats"], coverage["share"]
    axes.plot(nats, share, "o-", color=UNFLAGGED)
    axes.set_ylim(-0.03, 1.03)
    reading = (
        "Share of the reference's rewarded draws that the proposal writes at least exp(t) times less often than the "
        "reference, against t: "
        + ", ".join(f"{s:.0%} at {t:g}" for t, s in zip(nats, share, strict=True))
        + ". What lies far to the right has to come from the reference's own draws."
    )
    return Plate("coverage", figure, reading)


def _columns(estimates: Sequence[PartitionEstimate], *names: str) -> list[np.ndarray]:
    return [np.array([getattr(e, name) for e in estimates], dtype=np.float64) for name in names]


def _identity(p: np.ndarray, beta: float) -> np.ndarray:
    return np.log1p(np.expm1(beta) * p)


def _spread(values: np.ndarray) -> np.ndarray:
    """Sorted values with ties spread sideways by at most a third of the smallest gap."""
    distinct, counts = np.unique(values, return_counts=True)
    reach = 0.33 * (np.diff(distinct).min() if len(distinct) > 1 else 0.03)
    reach = min(reach, 0.015)
    offsets = [np.linspace(-reach, reach, n) if n > 1 else np.zeros(1) for n in counts]
    return values + np.concatenate(offsets)
