"""``disa init`` writes a first recipe, ``disa schema`` the JSON schema of any: neither loads a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from disa.comparison.config import ComparisonConfig
from disa.config import StageConfig
from disa.errors import DisaError
from disa.recipe import PRETRAINED_LENGTH, Recipe, load_recipe, pretrained_rate
from disa.study.config import StudyConfig
from disa.tasks import TASKS
from disa.tasks.benchmarks import BENCHMARKS
from disa.tasks.dataset_config import DatasetConfig, SourceConfig
from disa.tasks.sources import read_source

_PROMPTS = ("prompt", "question", "problem", "instruction", "query")
_ANSWERS = ("answer", "final_answer", "target", "solution", "output", "response")
_SHOWN = {
    "sampling": ("temperature", "max_completion_length", "conversational", "system_prompt"),
    "proposals": ("per_prompt", "per_heldout_prompt", "reference_share", "compute", "batch_size"),
    "training": (
        "methods",
        "inverse_temperature",
        "steps",
        "prompts_per_step",
        "completions_per_prompt",
        "micro_batch",
        "learning_rate",
        "warmup_steps",
        "lora",
        "compute",
    ),
    "evaluation": ("samples_per_prompt", "ks", "train_prompts"),
}
"""Sections and fields that a first recipe shows."""
_VALUES: dict[str, dict[str, Any]] = {
    "sampling": {"max_completion_length": PRETRAINED_LENGTH, "conversational": True},
    "proposals": {"per_prompt": 32, "per_heldout_prompt": 0},
    "training": {"methods": ["disa"], "learning_rate": pretrained_rate(False), "micro_batch": 8},
    "evaluation": {"samples_per_prompt": 4, "ks": [1, 4]},
}
"""Where a pretrained language model wants something else than the defaults, which suit a small model."""


def init(options: argparse.Namespace) -> int:
    """Write a recipe that passes ``load_recipe``, every field with what it means, and say what comes next."""
    path = Path(options.output)
    if path.exists():
        raise DisaError("the file exists", where=str(path), fix="name another one by --output, or remove it")
    models = {"reference": options.model} | ({"proposal": options.proposal} if options.proposal else {})
    sections = {"tasks": _tasks(options.dataset, options.verifier), "models": models}
    lines = [
        f"# A first recipe for {options.model} on {options.dataset}. Every setting: disa schema.",
        f"# Next: disa check {path}, then disa plan {path}, then disa run {path}",
        "",
        f"run_dir: runs/{path.stem}",
    ]
    for name, values in sections.items():
        lines += [""] + _section(Recipe, name, values)
    for name, fields in _SHOWN.items():
        defaults = Recipe.model_fields[name].default.model_dump(mode="json")
        lines += [""] + _section(Recipe, name, {f: _VALUES.get(name, {}).get(f, defaults[f]) for f in fields})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    load_recipe(path)
    print(f"{path}: written; next: disa check {path}")
    return 0


def schema(options: argparse.Namespace) -> int:
    """Print the JSON schema of a recipe."""
    print(json.dumps(recipe_schema(), indent=1))
    return 0


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe with the sections that commands of their own read."""
    whole = Recipe.model_json_schema()
    for name, section in (("comparison", ComparisonConfig), ("study", StudyConfig)):
        found = section.model_json_schema()
        whole["$defs"] |= found.pop("$defs", {})
        whole["properties"][name] |= {"anyOf": [found, {"type": "null"}]}
    return whole


def _tasks(dataset: str, verifier: str | None) -> dict[str, Any]:
    """The tasks section for a puzzle, a benchmark, a local file or a data set on the hub."""
    if dataset in TASKS and dataset != "dataset":
        return {"name": dataset}
    if dataset in BENCHMARKS:
        return {"name": "dataset", "sources": [{"benchmark": dataset, "use": "hash"}]}
    source: dict[str, Any] = {"path" if Path(dataset).suffix in (".jsonl", ".parquet") else "hub": dataset}
    source["verifier"] = verifier or "maths"
    if "path" in source:
        source["columns"] = _columns(source)
    else:
        source |= {"split": "train", "columns": {"prompt": "prompt", "answer": "answer"}}
    return {"name": "dataset", "sources": [source]}


def _columns(source: dict[str, Any]) -> dict[str, str]:
    """Columns of a local file that look like prompt and answer."""
    rows = read_source(SourceConfig.model_validate(source)).rows
    found = list(rows[0].values) if rows else []
    columns = {}
    for ours, names in (("prompt", _PROMPTS), ("answer", _ANSWERS)):
        if name := next((name for name in names if name in found), None):
            columns[ours] = name
        elif ours == "prompt":
            problem = f"no column looks like the prompt, found {', '.join(found) or 'no row'}"
            raise DisaError(problem, where=source["path"], fix=f"name one of them {', '.join(_PROMPTS)}")
    return columns


def _section(model: type[StageConfig], name: str, values: dict[str, Any]) -> list[str]:
    """A section with what each field means in front of it, as the configuration's own documentation says."""
    field = model.model_fields[name]
    lines = _comment(field.description, 0) + [f"{name}:"]
    inner = DatasetConfig if "sources" in values else field.annotation
    documented = inner.model_fields if isinstance(inner, type) and issubclass(inner, StageConfig) else {}
    for key, value in values.items():
        lines += _comment(documented[key].description if key in documented else None, 2)
        dumped = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, default_flow_style=False)
        lines += ["  " + line for line in dumped.splitlines()]
    return lines


def _comment(text: str | None, indent: int) -> list[str]:
    return [" " * indent + f"# {' '.join(line.split())}" for line in (text or "").splitlines()]
