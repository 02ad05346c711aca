"""What ``disa evaluate`` leaves behind: a table to read, one JSON of everything, one file per model."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disa.evaluation.generation import GenerationSettings
from disa.evaluation.metrics import AVERAGE, Summary, Values, prompt_value_rows, summary_to_json
from disa.evaluation.models import ModelSpec, adapter_base
from disa.evaluation.paired_tests import EvaluationComparison
from disa.evaluation.tables import summary_text
from disa.evaluation.task_prompts import TaskPrompts
from disa.runs.folders import StageFolder, write_json
from disa.runs.parquet_rows import write_rows
from disa.runs.records import PromptValue

TEST = "two-sided sign-flip permutation test on differences paired by problem, Holm-adjusted over models"


@dataclasses.dataclass(frozen=True)
class LeaderboardResults:
    """Everything one command measured."""

    specs: Sequence[ModelSpec]
    tasks: Sequence[TaskPrompts]
    settings: GenerationSettings
    ks: Sequence[int]
    folders: Mapping[str, Mapping[str, StageFolder]]
    """model -> task -> its samples."""
    values: Values
    summary: Summary
    comparisons: Sequence[EvaluationComparison]
    baseline: str

    @property
    def table(self) -> str:
        """Every metric of every model, with the differences to the baseline."""
        return summary_text(self.summary, self.comparisons, detail=True)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values: summary, comparisons, and all that is needed to draw the same samples again."""
        return {
            "summary": summary_to_json(self.summary),
            "comparisons": [c.as_json() for c in self.comparisons],
            "test": TEST,
            "settings": self.settings.identity() | {"ks": list(self.ks)},
            "tasks": {b.name: _task_facts(b) for b in self.tasks},
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
            "versions": {b.name: b.task.version for b in self.tasks},
            "config_tasks": {b.name: _task_facts(b) for b in self.tasks},
            "n-samples": {
                b.name: {"original": len(b.task.prompts(b.prompts[0].split)), "effective": len(b.prompts)}
                for b in self.tasks
            },
        }

    def write(self, output: Path) -> None:
        """Write ``results.json``, ``table.txt``, ``values.parquet`` and ``leaderboard/MODEL.json``."""
        write_json(output / "results.json", self.as_json())
        write_rows(output / "values.parquet", prompt_value_rows(self.values), PromptValue)
        (output / "table.txt").write_text(self.table + "\n", encoding="utf-8")
        (output / "leaderboard").mkdir(exist_ok=True)
        for spec in self.specs:
            write_json(output / "leaderboard" / f"{spec.name}.json", self.leaderboard(spec))


def _task_facts(benchmark: TaskPrompts) -> dict[str, Any]:
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
    from disa.lm.loading import effective_precision  # torch, which the models that were just drawn from have loaded

    where = adapter_base(Path(spec.where)).where if spec.kind == "adapter" else spec.where
    return effective_precision(settings.compute, where)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
