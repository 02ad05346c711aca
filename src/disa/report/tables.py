"""The before/after table, for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from disa.evaluation.metrics import Measured, PromptValues, Summary, paired_difference, per_prompt
from disa.report.content import ReportContent, models_in_order
from disa.report.escape import shown
from disa.text_table import aligned

_LABELS = {
    "mean": ("Mean", "↑"),
    "pass": ("pass", "↑"),
    "distinct_modes": ("Distinct modes", "↑"),
    "effective_modes": ("Effective modes", "↑"),
    "coverage": ("Coverage of all solutions", "↑"),
    "kl_to_target": ("KL to target (nats)", "↓"),
    "kl_to_reference": ("KL to reference (nats)", ""),
}


def metrics_table_text(summary: Summary) -> str:
    """Aligned plain text, one block a split: a row a metric, a column a model, ``value ± standard error``."""
    blocks = []
    for split, models, metrics in _splits(summary):
        rows = [[f"{split} ({_prompts(summary, split, metrics)} prompts)", *models]]
        for metric in metrics:
            cells = [summary[m][split].get(metric) for m in models]
            rows.append([metric_label(metric), *(measured_text(c) if c else "" for c in cells)])
        blocks.append(aligned(rows))
    return "\n\n".join(blocks)


def rows_html(rows: Sequence[Sequence[str]]) -> str:
    """Return header and rows as an HTML table, the first cell of a row as its name."""
    head = "".join(f"<th>{shown(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th>{shown(row[0])}</th>{''.join(f'<td>{shown(cell)}</td>' for cell in row[1:])}</tr>" for row in rows[1:]
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def metrics_table_html(content: ReportContent) -> str:
    """Return the same as HTML tables, with each model's difference to the reference paired by prompt."""
    summary, html = content.summary, []
    paired = _paired_values(content)
    for split, models, metrics in _splits(summary):
        head = "".join(f"<th>{shown(name)}</th>" for name in models)
        rows = []
        for metric in metrics:
            cells = [_cell(summary, paired, split, metric, model) for model in models]
            rows.append(f"<tr><th>{metric_label(metric)}</th>{''.join(cells)}</tr>")
        caption = f"{shown(split)}, {_prompts(summary, split, metrics)} prompts"
        html.append(
            f'<div class="wide"><table><caption>{caption}</caption>'
            f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    return "\n".join(html)


def pairs_html(pairs: Mapping[str, object]) -> str:
    """Return a two-column table of names and values."""
    rows = "".join(f"<tr><th>{shown(k)}</th><td>{shown(str(v))}</td></tr>" for k, v in pairs.items())
    return f'<div class="wide"><table>{rows}</table></div>'


def measured_text(measured: Measured, sign: str = "") -> str:
    """``0.312 ± 0.011``, without the error where one prompt leaves it undefined."""
    error = "" if math.isnan(measured.se) else f" ± {measured.se:.3f}"
    return f"{measured.value:{sign}.3f}{error}"


def largest_k(metrics: Iterable[str], name: str) -> int | None:
    """Largest k with which ``name@k`` was measured, None where it was not."""
    return max((int(m.rpartition("@")[2]) for m in metrics if m.startswith(f"{name}@")), default=None)


def metric_label(metric: str) -> str:
    """A metric's name as tables show it, with an arrow to the better side."""
    name, _, k = metric.partition("@")
    label, better = _LABELS[name]
    return f"{label}{'@' + k if k else ''} {better}".rstrip()


def shown_metrics(present: Iterable[str]) -> list[str]:
    """Metrics in their order; Mean@k is one number for every k, and so are pass@1 and distinct modes@1: kept once."""
    present = list(present)
    repeats = {m for m in present if m.startswith("mean@")} - {f"mean@{largest_k(present, 'mean')}"}
    repeats |= {"pass@1", "distinct_modes@1"}
    order = list(_LABELS)
    return sorted((m for m in present if m not in repeats), key=lambda m: order.index(m.partition("@")[0]))


def _splits(summary: Summary) -> list[tuple[str, list[str], list[str]]]:
    """(split, its models, its metrics in order), held-out first."""
    result = []
    for split in sorted({s for splits in summary.values() for s in splits}, key=lambda s: (s != "heldout", s)):
        models = models_in_order(m for m in summary if split in summary[m])
        present = list(dict.fromkeys(metric for m in models for metric in summary[m][split]))
        result.append((split, models, shown_metrics(present)))
    return result


def _cell(summary: Summary, paired: Mapping[tuple, PromptValues], split: str, metric: str, model: str) -> str:
    measured = summary[model][split].get(metric)
    if measured is None:
        return "<td></td>"
    first, second = paired.get((model, split, metric)), paired.get(("reference", split, metric))
    difference = ""
    if model != "reference" and first and second and set(first) & set(second):
        difference = f"<br><small>{_parts(paired_difference(first, second), '+')}</small>"
    return f"<td>{_parts(measured)}{difference}</td>"


def _parts(measured: Measured, sign: str = "") -> str:
    """Value and error as two pieces, between which a narrow screen may break the line."""
    value, plus_minus, error = measured_text(measured, sign).partition(" ± ")
    return f"<span>{value}</span>" + (f" <span>± {error}</span>" if plus_minus else "")


def _paired_values(content: ReportContent) -> dict[tuple[str, str, str], PromptValues]:
    log_z = {e.prompt_id: e.log_z for e in content.estimates}
    metrics = {m for splits in content.summary.values() for ms in splits.values() for m in ms}
    ks = sorted({int(m.rpartition("@")[2]) for m in metrics if "@" in m})
    values = per_prompt(content.records, content.prompts, log_z, content.beta, ks)
    return {(m, s, name): v for m, splits in values.items() for s, ms in splits.items() for name, v in ms.items()}


def _prompts(summary: Summary, split: str, metrics: Iterable[str]) -> str:
    counts = {m[split][name].n_prompts for m in summary.values() if split in m for name in metrics if name in m[split]}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
