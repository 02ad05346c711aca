"""The one table of metrics: of a run, of ``disa evaluate`` and ``disa judge``, of a comparison and a study."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from disa.display.table import Table, aligned_columns, with_error
from disa.evaluation.metrics import MetricValue, Summary
from disa.evaluation.paired_tests import EvaluationComparison

_LABELS = {
    "mean": "Mean ↑",
    "pass": "pass ↑",
    "distinct_modes": "Distinct modes ↑",
    "effective_modes": "Effective modes ↑",
    "coverage": "Coverage of all solutions ↑",
    "kl_to_target": "KL to target (nats) ↓",
    "kl_to_reference": "KL to reference (nats)",
    "undecided": "Undecided",
    "truncated": "Truncated",
    "tokens": "Tokens",
    "judged_solutions": "Judged solutions",
    "simpson": "Simpson index",
    "effective_strategies": "Effective strategies",
    "abstained": "Abstained pairs",
    "self_bleu": "Self-BLEU",
    "vendi": "Vendi score",
}
"""Names with an arrow to the better side, in the order of the rows."""
_MISSING = ("undecided", "abstained")
MARK = "*"
"""Stands beside a difference of more than two standard errors."""


def metric_label(metric: str) -> str:
    """A metric's name as tables show it, with an arrow to the better side."""
    name, k, bound = _parts(metric)
    label = _LABELS[name].removesuffix(" ↑")
    arrow = "" if bound or label == _LABELS[name] else " ↑"
    return label + (f"@{k}" if k else "") + (f", {bound} bound" if bound else "") + arrow


def better_direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither is."""
    label = metric_label(metric)
    return 1 if label.endswith("↑") else -1 if label.endswith("↓") else 0


def largest_k(metrics: Iterable[str], name: str) -> int | None:
    """Largest k with which ``name@k`` was measured, None where it was not."""
    return max((int(k) for base, k, bound in map(_parts, metrics) if base == name and k and not bound), default=None)


def shown_metrics(present: Iterable[str], *, idle: Collection[str] = _MISSING, detail: bool = False) -> list[str]:
    """Metrics worth a row, in order.

    Mean@k is one number for every k, and what is at k = 1 the same number again: kept once. ``idle`` names shares of
    missing verdicts that are 0 for every model; with ``detail`` come bounds, lengths and cuts.
    """
    present = list(dict.fromkeys(present))
    k = str(largest_k(present, "mean"))
    hidden = {m for m in present if _parts(m)[0] == "mean" and _parts(m)[1] != k} | set(idle)
    hidden |= {m for m in present if _parts(m)[:2] in (("pass", "1"), ("distinct_modes", "1"))}
    if not detail:
        hidden |= {m for m in present if _parts(m)[2] or m in ("truncated", "tokens")}
    order = list(_LABELS)
    return sorted((m for m in present if m not in hidden), key=lambda m: order.index(_parts(m)[0]))


def measured_text(measured: MetricValue | None, metric: str = "", sign: str = "") -> str:
    """``0.312 ± 0.011``; nothing where it was not measured."""
    if measured is None:
        return ""
    return with_error(measured.value, measured.se, 1 if metric == "tokens" else 3, sign)


def beyond_two_errors(difference: MetricValue) -> bool:
    """Whether a difference is more than two of its standard errors from 0."""
    return abs(difference.value) > 2.0 * difference.se


def difference_text(difference: MetricValue, metric: str = "") -> str:
    """``+0.031 ± 0.011 *``, with the mark where it is significant."""
    return measured_text(difference, metric, sign="+") + (f" {MARK}" if beyond_two_errors(difference) else "")


def summary_tables(
    summary: Summary,
    comparisons: Sequence[EvaluationComparison] = (),
    *,
    detail: bool = False,
    differences: Mapping[tuple[str, str, str], MetricValue] | None = None,
) -> list[Table]:
    """A table per split or task, held-out prompts first: a row per metric, a column per model, the reference first.

    ``comparisons`` become lines beneath the table of their task, ``differences`` to the reference second lines of their
    cells. ``detail`` is that of :func:`shown_metrics`.
    """
    tables = []
    groups = dict.fromkeys(group for found in summary.values() for group in found)
    for group in sorted(groups, key=lambda g: g != "heldout"):
        cells = {m: summary[m][group] for m in models_in_order(summary) if group in summary[m]}
        present = [metric for metrics in cells.values() for metric in metrics]
        idle = {m for m in _MISSING if not any(c[m].value for c in cells.values() if m in c)}
        metrics = shown_metrics(present, idle=idle, detail=detail)
        rows = [[f"{group} ({_prompts(cells, metrics)} prompts)", *cells]]
        for metric in metrics:
            row = [metric_label(metric)]
            for model, found in cells.items():
                row.append(measured_text(found.get(metric), metric))
                if difference := (differences or {}).get((model, group, metric)):
                    row[-1] += f"\n{difference_text(difference, metric)}"
            rows.append(row)
        below = [
            [
                f"{c.model} - {c.baseline}, {metric_label(c.metric)}",
                measured_text(c.difference, c.metric, sign="+"),
                f"p = {c.p_value:.4f}" + (f", Holm {c.p_holm:.4f}" if c.p_holm != c.p_value else ""),
            ]
            for c in comparisons
            if c.task == group
        ]
        tables.append(Table(rows, title=group, notes=aligned_columns(below).splitlines() if below else ()))
    return tables


def summary_text(summary: Summary, comparisons: Sequence[EvaluationComparison] = (), *, detail: bool = False) -> str:
    """The tables as aligned text."""
    return "\n\n".join(table.text() for table in summary_tables(summary, comparisons, detail=detail))


def models_in_order(names: Iterable[str]) -> list[str]:
    """Put the reference first, then the others as they come."""
    return sorted(names, key=lambda name: name != "reference")


def _prompts(cells: Mapping[str, Mapping[str, MetricValue]], metrics: Iterable[str]) -> str:
    counts = {found[name].n_prompts for found in cells.values() for name in metrics if name in found}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _parts(metric: str) -> tuple[str, str, str]:
    """Name, k and bound (``low``, ``high``) of a metric, the latter two empty where it has none."""
    bound = next((end for end in ("low", "high") if metric.endswith(f"_{end}")), "")
    name, _, k = metric.removesuffix(f"_{bound}").partition("@")
    return name, k, bound
