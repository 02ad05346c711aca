"""What a person decides from: which policy to take, how far log Z can be trusted, and what it cost."""

from __future__ import annotations

from collections import Counter

from disa.evaluation.metrics import MetricValue
from disa.evaluation.tables import better_direction, beyond_two_errors, measured_text, metric_label
from disa.report.content import ReportContent

SPLITS = {"heldout": "held-out prompts", "train": "training prompts", "validation": "validation prompts"}


def verdict_lines(content: ReportContent) -> list[str]:
    """The recommendation, every other policy, the flags and the cost, as sentences.

    Recommended is the policy with the most metrics in which it is better than the reference by more than two standard
    errors, those in which it is as clearly worse taken off; of equal ones the nearest to the target.
    """
    return [*_policies(content), *_flags(content), *_cost(content)]


def significant_changes(
    content: ReportContent, model: str, split: str
) -> tuple[dict[str, MetricValue], dict[str, MetricValue]]:
    """Differences to the reference beyond two standard errors, by metric: the better and the worse ones."""
    better: dict[str, MetricValue] = {}
    worse: dict[str, MetricValue] = {}
    for metric in content.judged_metrics(split):
        difference = content.differences.get((model, split, metric))
        if difference is not None and beyond_two_errors(difference):
            (better if difference.value * better_direction(metric) > 0 else worse)[metric] = difference
    return better, worse


def recommended_policy(content: ReportContent) -> str | None:
    """The policy to take, None where none is better than the reference in more metrics than it is worse in."""
    split = content.decisive_split
    scores = {}
    for model in content.values:
        if model != "reference" and split in content.values[model]:
            better, worse = significant_changes(content, model, split)
            distance = content.summary[model][split].get("kl_to_target")
            scores[model] = (len(better) - len(worse), -distance.value if distance else 0.0)
    best = max(scores, key=scores.__getitem__, default=None)
    return best if best is not None and scores[best][0] > 0 else None


def _policies(content: ReportContent) -> list[str]:
    split = content.decisive_split
    models = [m for m in content.models if m != "reference" and split in content.values.get(m, {})]
    if split is None or not models or "reference" not in content.values:
        return []
    best, where = recommended_policy(content), SPLITS.get(split, f"prompts of {split}")
    said = [
        f"Take {best}: on {where} it is {_said(content, best, split)}."
        if best
        else f"Keep the reference: on {where} no policy is better in more metrics than it is worse in."
    ]
    return said + [f"{model} is {_said(content, model, split)}." for model in models if model != best]


def _said(content: ReportContent, model: str, split: str) -> str:
    parts = []
    for word, found in zip(("better", "worse"), significant_changes(content, model, split), strict=True):
        names = [f"{_name(m)} ({measured_text(d, m, sign='+')})" for m, d in found.items()]
        parts.append(f"{word} in {', '.join(names) or 'none'}")
    return f"{parts[0]}, and {parts[1]}, each against the reference by more than two standard errors"


def _flags(content: ReportContent) -> list[str]:
    rows = [e for e in content.estimates if e.split == "train"] or content.estimates
    if not rows:
        return []
    flagged, counts = sum(bool(e.flags) for e in rows), Counter(flag for e in rows for flag in set(e.flags))
    kinds = ", ".join(f"{name} {n}" for name, n in counts.most_common())
    said = f"log Z: {flagged} of {len(rows)} training prompts are flagged ({flagged / len(rows):.0%})"
    return [said + (f": {kinds}." if kinds else ".")]


def _cost(content: ReportContent) -> list[str]:
    seconds = {name.split("/")[-1]: s for name, s in content.timings.items() if name.startswith("6_training/")}
    before = ("2_proposals", "3_scoring", "4_partition", "5_anchor")
    shared = [s for name, s in content.timings.items() if name.startswith(before)]
    said = []
    if "anchor" in content.completions and shared:
        drawn = content.completions["anchor"]
        said.append(
            f"the anchor {drawn:,} trajectories and {duration_text(sum(shared))}, once for every policy that reads it"
        )
    for method, spent in seconds.items():
        said.append(f"{method} {content.completions.get(method, 0):,} completions and {duration_text(spent)}")
    return [f"Cost: {'; '.join(said)}."] if said else []


def duration_text(seconds: float) -> str:
    """Seconds as a person reads them."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _name(metric: str) -> str:
    return metric_label(metric).rstrip(" ↑↓")
