"""What ``disa evaluate`` leaves behind: a table to read, one JSON of everything, one file a model for leaderboards."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disa.evaluation.benchmark import Benchmark
from disa.evaluation.compare import AVERAGE, Comparison
from disa.evaluation.generation import GenerationSettings
from disa.evaluation.metrics import Measured, Summary, summary_to_json
from disa.evaluation.models import ModelSpec
from disa.evaluation.samples import ProblemScore
from disa.runs.folders import StageFolder, write_json
from disa.text_table import aligned

TEST = "two-sided sign-flip permutation test on differences paired by problem, Holm-adjusted over models"
_NAMES = {
    "mean": "Mean",
    "pass": "pass",
    "distinct_modes": "Distinct modes",
    "effective_modes": "Effective modes",
    "coverage": "Coverage of all solutions",
    "truncated": "Truncated",
    "tokens": "Tokens",
    "undecided": "Undecided",
    "judged_solutions": "Judged solutions",
    "simpson": "Simpson index",
    "effective_strategies": "Effective strategies",
    "abstained": "Abstained pairs",
    "self_bleu": "Self-BLEU",
    "vendi": "Vendi score",
}


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything one command measured."""

    specs: Sequence[ModelSpec]
    benchmarks: Sequence[Benchmark]
    settings: GenerationSettings
    ks: Sequence[int]
    folders: Mapping[str, Mapping[str, StageFolder]]
    """model -> task -> its samples."""
    scores: Sequence[ProblemScore]
    summary: Summary
    comparisons: Sequence[Comparison]
    baseline: str

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values: summary, comparisons, and all that is needed to draw the same samples again."""
        return {
            "summary": summary_to_json(self.summary),
            "comparisons": [comparison_json(c) for c in self.comparisons],
            "test": TEST,
            "settings": self.settings.identity() | {"ks": list(self.ks)},
            "tasks": {b.name: _task_facts(b) for b in self.benchmarks},
            "models": {s.name: self._model_facts(s) for s in self.specs},
            "order": [s.name for s in self.specs],
            "baseline": self.baseline,
        }

    def _model_facts(self, spec: ModelSpec) -> dict[str, Any]:
        manifests = {task: folder.manifest for task, folder in self.folders[spec.name].items()}
        first = next(iter(manifests.values()))
        return {
            "kind": spec.kind,
            "where": spec.where,
            "identity": first["configuration"]["model"],
            "source": first["source"],
            "packages": first["packages"],
            "seconds": {task: manifest["seconds"] for task, manifest in manifests.items()},
        }

    def leaderboard(self, spec: ModelSpec) -> dict[str, Any]:
        """One model's results under the keys of lighteval's result files (lm-eval's ``n-samples`` beside them)."""
        facts = self._model_facts(spec)
        results: dict[str, dict[str, float | None]] = {}
        for task, metrics in self.summary[spec.name].items():
            row = results.setdefault("all" if task == AVERAGE else task, {})
            for name, measured in metrics.items():
                row |= {name: measured.value, f"{name}_stderr": _number(measured.se)}
        # lighteval's "all" is the mean over tasks; with one task it is that task.
        results.setdefault("all", next(iter(results.values())))
        settings = self.settings
        return {
            "config_general": {
                "disa_version": facts["packages"]["disa"],
                "packages": facts["packages"],
                "model_name": spec.where,
                "model_sha": facts["source"].get("revision") or facts["source"].get("weights") or "",
                "model_dtype": _dtype(spec, settings),
                "generation_parameters": {
                    "temperature": settings.temperature,
                    "top_p": settings.top_p,
                    "max_new_tokens": settings.max_tokens,
                    "seed": settings.seed,
                    "num_samples": settings.samples,
                    **settings.request,
                },
                "system_prompt": settings.system_prompt,
                "prompt_format": facts["source"]["prompt_format"],
                "chat_template": facts["source"]["chat_template"],
                "total_evaluation_time_secondes": str(sum(facts["seconds"].values())),
                "date": time.time(),
            },
            "results": results,
            "versions": {b.name: b.task.version for b in self.benchmarks},
            "config_tasks": {b.name: _task_facts(b) for b in self.benchmarks},
            "n-samples": {
                b.name: {"original": len(b.task.prompts(b.prompts[0].split)), "effective": len(b.prompts)}
                for b in self.benchmarks
            },
        }

    def write(self, output: Path) -> None:
        """Write ``results.json``, ``table.txt`` and ``leaderboard/MODEL.json``."""
        write_json(output / "results.json", self.as_json())
        (output / "table.txt").write_text(summary_table(self.summary, self.comparisons) + "\n", encoding="utf-8")
        (output / "leaderboard").mkdir(exist_ok=True)
        for spec in self.specs:
            write_json(output / "leaderboard" / f"{spec.name}.json", self.leaderboard(spec))


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Plain JSON values of a comparison."""
    difference = comparison.difference
    return {
        "task": comparison.task,
        "metric": comparison.metric,
        "model": comparison.model,
        "baseline": comparison.baseline,
        "difference": difference.value,
        "se": _number(difference.se),
        "n_problems": difference.n_prompts,
        "p_value": comparison.p_value,
        "p_holm": comparison.p_holm,
    }


def summary_table(summary: Summary, comparisons: Sequence[Comparison]) -> str:
    """Aligned text: a block a task, a row a metric, a column a model; differences to the baseline below."""
    blocks = []
    for task in dict.fromkeys(task for tasks in summary.values() for task in tasks):
        cells = {model: tasks.get(task, {}) for model, tasks in summary.items()}
        n = max(measured.n_prompts for metrics in cells.values() for measured in metrics.values())
        rows = [[f"{task} ({n} problems)", *cells]]
        for metric in _shown(cells):
            rows.append([_label(metric), *(measured_text(found.get(metric), metric) for found in cells.values())])
        differences = [
            [
                f"{c.model} - {c.baseline}, {_label(c.metric)}",
                measured_text(c.difference, c.metric, sign="+"),
                f"p = {c.p_value:.4f}" + (f", Holm {c.p_holm:.4f}" if c.p_holm != c.p_value else ""),
            ]
            for c in comparisons
            if c.task == task
        ]
        blocks.append(aligned(rows) + ("\n" + aligned(differences) if differences else ""))
    return "\n\n".join(blocks)


def _shown(cells: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    """Metrics worth a row: Mean@k is one number for every k, and what is at k = 1 the same number again."""
    present = list(dict.fromkeys(metric for metrics in cells.values() for metric in metrics))
    ks = [int(k) for base, k, bound in map(_parts, present) if base == "mean" and not bound] or [0]
    hidden = {m for m in present if _parts(m)[:2] in [("pass", "1"), ("distinct_modes", "1")]}
    hidden |= {m for m in present if _parts(m)[0] == "mean" and _parts(m)[1] != str(max(ks))}
    for missing in ("undecided", "abstained"):
        if not any(metrics[missing].value for metrics in cells.values() if missing in metrics):
            hidden.add(missing)
    order = list(_NAMES)
    return sorted((m for m in present if m not in hidden), key=lambda m: order.index(_parts(m)[0]))


def measured_text(measured: Measured | None, metric: str, sign: str = "") -> str:
    """``0.312 ± 0.011``; nothing where it was not measured, no error where one problem leaves it undefined."""
    if measured is None:
        return ""
    digits = 1 if metric == "tokens" else 3
    error = "" if math.isnan(measured.se) else f" ± {measured.se:.{digits}f}"
    return f"{measured.value:{sign}.{digits}f}{error}"


def _task_facts(benchmark: Benchmark) -> dict[str, Any]:
    report = benchmark.task.data_report()
    return {
        "task": benchmark.task.fingerprint,
        "reward": benchmark.task.reward_fingerprint,
        "split": benchmark.prompts[0].split,
        "problems": len(benchmark.prompts),
        "problems_digest": benchmark.content,
        "configuration": benchmark.task.config.identity(),
        "data": report.facts if report is not None else None,
    }


def _dtype(spec: ModelSpec, settings: GenerationSettings) -> str:
    if spec.kind == "endpoint":
        return ""
    from disa.lm.loading import effective_dtype  # torch, which the models that were just drawn from have loaded

    return effective_dtype(settings.compute)


def _parts(metric: str) -> tuple[str, str, str]:
    """Name, k and bound (``low``, ``high``) of a metric, the latter two empty where it has none."""
    bound = next((end for end in ("low", "high") if metric.endswith(f"_{end}")), "")
    name, _, k = metric.removesuffix(f"_{bound}").partition("@")
    return name, k, bound


def _label(metric: str) -> str:
    name, k, bound = _parts(metric)
    return _NAMES[name] + (f"@{k}" if k else "") + (f", {bound} bound" if bound else "")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
