"""The sections of the report's page, from the verdict to the provenance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from disa.display.page import (
    FoldedText,
    Illustration,
    PageFigures,
    PageLinks,
    PageSample,
    PageSamples,
    PageSection,
    PageText,
    cut_text,
    page,
)
from disa.display.table import Table, with_error
from disa.evaluation.tables import MARK, largest_k, models_in_order, summary_tables
from disa.partition.verdict import FLAGS
from disa.report.certificates import certificate_table
from disa.report.content import ReportContent
from disa.report.verdict import duration_text, verdict_lines
from disa.runs.records import CORRECT_REWARD, EvaluationRecord

_EXAMPLE_PROMPTS, _EXAMPLE_DRAWS = 5, 2
_PROMPT_CHARACTERS = 160
"""Of a prompt in the table; its id and its split find the rest."""


def report_page(content: ReportContent, figures: Mapping[str, list[Illustration]]) -> str:
    """Return the whole page; ``figures`` holds those of ``evaluation``, ``partition`` and ``training``."""
    lead = (
        f"Target: the reference, reweighted by exp(beta · reward), with beta = {content.beta:g}. log Z is that "
        "target's log partition function, estimated from offline draws and frozen before training. Log-probabilities, "
        "log Z and KL are in nats; ± is one standard error over prompts."
    )
    facts = [["", "value"], *([name, str(value)] for name, value in content.anchor_facts.items())]
    return page(
        content.title,
        lead,
        [
            PageSection("Verdict", [PageText(lines)] if (lines := verdict_lines(content)) else []),
            PageSection(
                "Results",
                [
                    *_results(content),
                    *certificate_table(content.certificates),
                    PageFigures(figures.get("evaluation", [])),
                ],
            ),
            PageSection("Partition function", [PageFigures(figures.get("partition", []))]),
            PageSection("Prompts", _prompts(content)),
            PageSection("Training", [PageFigures(figures.get("training", [])), *_last_step(content)]),
            PageSection("Example completions", _examples(content)),
            PageSection("Sampler against scorer", _parity(content.parity)),
            PageSection("What the anchor is frozen to", [Table(facts)] if content.anchor_facts else []),
            PageSection("Files", [PageLinks(content.files)] if content.files else []),
            PageSection("Provenance", _provenance(content)),
        ],
    )


def _results(content: ReportContent) -> Iterable[Table | PageText]:
    if not content.summary:
        return []
    note = (
        f"Second lines: difference to the reference, paired by prompt; {MARK} marks one of more than two standard "
        "errors. Arrows: which way is better."
    )
    return [*summary_tables(content.summary, detail=True, differences=content.differences), PageText([note])]


def _prompts(content: ReportContent) -> list[Table]:
    """One row per prompt with an estimate or samples: log Z and its flags, pass rate and modes by model."""
    estimates = {e.prompt_id: e for e in content.estimates}
    models = models_in_order(content.values)
    wanted = {}
    for model in models:
        present = [metric for metrics in content.values[model].values() for metric in metrics]
        if k := largest_k(present, "mean"):
            wanted[f"{model}: Mean@{k}"] = (model, f"mean@{k}")
        if m := largest_k(present, "distinct_modes"):
            wanted[f"{model}: modes@{m}"] = (model, f"distinct_modes@{m}")
    rows = [["prompt", "id", "split", "log Z", "interval from", "to", "flags", "reference draws' reward", *wanted]]
    for prompt in content.prompts:
        values = {
            name: content.values[model].get(prompt.split, {}).get(metric, {}).get(prompt.prompt_id)
            for name, (model, metric) in wanted.items()
        }
        e = estimates.get(prompt.prompt_id)
        if e is None and not any(value is not None for value in values.values()):
            continue
        numbers = [None] * 4 if e is None else [e.log_z, e.interval_low, e.interval_high, e.mean_reward_reference]
        log_z, low, high, rate = (with_error(number, None) for number in numbers)
        flags = " ".join(e.flags) if e is not None else ""
        shown = (with_error(value, None) for value in values.values())
        text = cut_text(prompt.prompt, _PROMPT_CHARACTERS)
        rows.append([text, prompt.prompt_id, prompt.split, log_z, low, high, flags, rate, *shown])
    raised = dict.fromkeys(flag for e in content.estimates for flag in e.flags)
    meanings = [["flag", "what it means, and what to do"], *([flag, FLAGS[flag]] for flag in raised)]
    found = [Table(rows, title="Every prompt", caption="A click on a column's name sorts by it.", searchable=True)]
    return ([*found, Table(meanings, title="Flags")] if raised else found) if len(rows) > 1 else []


def _examples(content: ReportContent) -> list[PageSamples | PageText]:
    """Show the first draws of the first prompts: by position, so that nothing is picked for its looks."""
    by_prompt: dict[str, dict[str, list[EvaluationRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in content.records:
        by_prompt[record.prompt_id][record.model].append(record)
    evaluated = [p for p in content.prompts if p.prompt_id in by_prompt]
    evaluated.sort(key=lambda p: p.split != "heldout")
    shown: list[PageSamples | PageText] = [PageText(["The first draws of the first evaluated prompts, not selected."])]
    for prompt in evaluated[:_EXAMPLE_PROMPTS]:
        columns = {
            model: [
                _sample(r) for r in sorted(by_prompt[prompt.prompt_id][model], key=lambda r: r.draw)[:_EXAMPLE_DRAWS]
            ]
            for model in models_in_order(by_prompt[prompt.prompt_id])
        }
        shown.append(PageSamples(f"Prompt {prompt.prompt_id}, {prompt.split}", prompt.prompt, columns))
    return shown if evaluated else []


def _last_step(content: ReportContent) -> list[PageSamples | PageText]:
    """First completions of the methods' last steps, prompts that several methods drew for in front."""
    drawn: dict[str, dict[str, list[PageSample]]] = defaultdict(lambda: defaultdict(list))
    for method, rows in content.training_completions.items():
        for row in rows:
            note = f"step {row['step']}" + ("" if row["reward"] is None else f", reward {row['reward']:g}")
            drawn[row["prompt"]][method].append(PageSample(row["completion"], _verdict(row["reward"]), note))
    prompts = sorted(drawn, key=lambda prompt: -len(drawn[prompt]))[:_EXAMPLE_PROMPTS]
    ids = {prompt.prompt: prompt.prompt_id for prompt in content.prompts}
    shown: list[PageSamples | PageText] = [
        PageText(["Completions of the last step of training, the first ones, not selected."])
    ]
    for prompt in prompts:
        columns = {method: samples[:_EXAMPLE_DRAWS] for method, samples in drawn[prompt].items()}
        shown.append(PageSamples(f"Prompt {ids.get(prompt, 'in training')}", prompt, columns))
    return shown if prompts else []


def _verdict(reward: float | None) -> str:
    return "undecided" if reward is None else "right" if reward >= CORRECT_REWARD else "wrong"


def _sample(record: EvaluationRecord) -> PageSample:
    notes = [f"draw {record.draw}"]
    notes += [f"reward {record.reward:g}"] if record.reward is not None else []
    notes += [f"mode {cut_text(record.mode, 60)}"] if record.mode is not None else []
    return PageSample(
        record.completion, _verdict(record.reward), ", ".join(notes + ["cut at the length limit"] * record.truncated)
    )


def _parity(parity: Mapping[str, object]) -> list[Table]:
    rows = [["", "value"]]
    for key, value in parity.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [[f"{key} {name}".strip(), f"{v:.3g}" if isinstance(v, float) else str(v)] for name, v in inner]
    caption = (
        "Every stored log-probability was computed twice, by the sampler and by the scorer. The mean absolute "
        "difference per token must stay within the bound: every importance weight is off by what they disagree."
    )
    return [Table(rows, caption=caption)] if parity else []


def _provenance(content: ReportContent) -> list[Table | FoldedText]:
    parts: list[Table | FoldedText] = []
    if content.timings:
        whole = content.timings | {"all stages": sum(content.timings.values())}
        parts.append(Table([["stage", "wall time"], *([name, duration_text(s)] for name, s in whole.items())]))
    if content.versions:
        parts.append(Table([["package", "version"], *map(list, content.versions.items())]))
    return [*parts, FoldedText("Recipe", content.recipe)] if content.recipe else parts
