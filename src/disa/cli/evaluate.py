"""``disa evaluate``: Mean@k and pass@k of models on tasks, side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from disa.errors import DisaError
from disa.evaluation.generation import GenerationSettings
from disa.evaluation.leaderboard import LeaderboardResults
from disa.evaluation.metrics import Values, per_prompt, summarise_metrics
from disa.evaluation.models import ModelSpec
from disa.evaluation.paired_tests import compare_evaluations
from disa.evaluation.run import evaluate_model
from disa.evaluation.sources import ServerSettings
from disa.evaluation.task_prompts import TaskPrompts
from disa.lm.openai_client import check_request
from disa.recipe import load_recipe
from disa.runs.folders import StageFolder
from disa.runs.locks import exclusive
from disa.runs.records import EvaluationRecord
from disa.tasks import TASKS, TaskSection, make_task
from disa.tasks.benchmarks import BENCHMARKS
from disa.tasks.dataset_config import DatasetConfig, SourceConfig

# Command-line options that are fields of GenerationSettings under the same name.
_SETTINGS = "samples temperature top_p max_tokens seed prompt_format system_prompt compute batch_size problems_per_part"


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate, then print the table (or with ``--json`` the results) and write the files."""
    specs = [ModelSpec.parse(text) for text in options.models]
    _refuse_twice("model", [s.name for s in specs], "name them: NAME=MODEL")
    settings, ks = _settings(options)
    tasks = _tasks(options, settings.seed)
    baseline = options.baseline or specs[0].name
    if baseline not in [s.name for s in specs]:
        known = ", ".join(s.name for s in specs)
        raise DisaError(f"no model is called '{baseline}'", where="--baseline", fix=f"choose one of {known}")
    server = checked_server(options)
    if any(spec.kind != "endpoint" for spec in specs):
        from transformers.utils import logging

        logging.disable_progress_bar()  # bars over reading model files hide the ones that matter
    console = Console(highlight=False, stderr=True)
    output = Path(options.output)
    with exclusive(output), contextlib.redirect_stdout(sys.stderr):  # progress must not mix with --json
        folders = {}
        for spec in specs:
            folders[spec.name] = evaluate_model(
                output, spec, tasks, settings, server, lambda line: console.print(line, markup=False)
            )
        values = _values(folders, tasks, ks)
        metrics = dict.fromkeys([f"mean@{max(ks)}", *(f"pass@{k}" for k in ks if k > 1), "effective_modes"])
        comparisons = compare_evaluations(values, baseline, list(metrics))
        summary = summarise_metrics(values, average=True)
        results = LeaderboardResults(specs, tasks, settings, ks, folders, values, summary, comparisons, baseline)
        results.write(output)
    if options.json:
        print(json.dumps(results.as_json(), indent=1))
    else:
        print(results.table)
        print(f"\nresults: {output / 'results.json'}, {output / 'leaderboard'}, {output / 'values.parquet'}")
    return 0


def _values(folders: dict[str, dict[str, StageFolder]], tasks: list[TaskPrompts], ks: Sequence[int]) -> Values:
    """Every metric of every model and task by prompt; tasks may give the same prompt an id."""
    found: Values = {model: {} for model in folders}
    for asked in tasks:
        n_solutions = {p.prompt_id: p.n_solutions for p in asked.prompts}
        rows = [row for by_task in folders.values() for row in by_task[asked.name].rows(EvaluationRecord)]
        for model, groups in per_prompt(rows, n_solutions, ks, by="task", has_modes=asked.task.has_modes).items():
            found[model] |= groups
    return found


def checked_server(options: argparse.Namespace) -> dict[str, Any]:
    """How served models are reached, as keyword arguments of the client."""
    values = {name: getattr(options, name) for name in ServerSettings.model_fields}
    return _checked(ServerSettings, values, "--").model_dump()


def _settings(options: argparse.Namespace) -> tuple[GenerationSettings, tuple[int, ...]]:
    """Command line over recipe over defaults."""
    values: dict[str, Any] = {}
    ks = None
    if options.recipe is not None:
        recipe = load_recipe(options.recipe, options.overrides)
        speed = {"batch_size", "problems_per_part"}
        values = GenerationSettings.of_run(recipe.evaluation, recipe.sampling).model_dump(exclude=speed)
        ks = recipe.evaluation.ks
    if options.request is not None:
        values["request"] = check_request(options.request)
    values |= {n: getattr(options, n) for n in _SETTINGS.split() if getattr(options, n) is not None}
    settings = _with_whole_batches(_checked(GenerationSettings, values, "--"), options)
    if options.ks is not None or ks is None:
        ks = _ks(options.ks) if options.ks is not None else tuple({1, settings.samples})
    if max(ks) > settings.samples:
        problem = f"k = {max(ks)} needs at least as many samples, {settings.samples} asked"
        raise DisaError(problem, where="--ks", fix="raise --samples, or lower the k")
    return settings, tuple(sorted(set(ks)))


def _with_whole_batches(settings: GenerationSettings, options: argparse.Namespace) -> GenerationSettings:
    """Parts that hold the batch asked for: a batch never reaches beyond its part."""
    needed = -(-settings.batch_size // settings.samples)
    if options.batch_size is None or settings.problems_per_part >= needed:
        return settings
    if options.problems_per_part is not None:
        held = settings.problems_per_part * settings.samples
        problem = f"{settings.batch_size} completions at once, but a part holds {held}"
        raise DisaError(problem, where="--batch-size", fix=f"raise --problems-per-part to {needed}, or leave it out")
    return settings.model_copy(update={"problems_per_part": needed})


def _ks(text: str) -> tuple[int, ...]:
    try:
        ks = tuple(int(part) for part in text.split(","))
    except ValueError:
        ks = (0,)
    if min(ks) < 1:
        raise DisaError(f"expected whole numbers from 1 on, found '{text}'", where="--ks", fix="write --ks 1,8")
    return ks


def _tasks(options: argparse.Namespace, seed: int) -> list[TaskPrompts]:
    asked = getattr(options, "tasks", None) or []
    configurations = [(name, _task_config(name, given, options.split)) for name, given in asked]
    if options.recipe is not None:
        recipe = load_recipe(options.recipe, options.overrides)
        configurations.append((recipe.tasks.name, recipe.tasks))
    if not configurations:
        raise DisaError("no task", where="command line", fix="add --task NAME or --recipe RECIPE.yaml")
    _refuse_twice("task", [name for name, _ in configurations], "use one --output for each")
    return [
        TaskPrompts.of(make_task(config), name=name, split=options.split, limit=options.limit, seed=seed)
        for name, config in configurations
    ]


def _task_config(name: str, given: dict[str, str], split: str) -> Any:
    """The configuration of ``--task NAME`` with its ``--data`` and ``--option KEY=VALUE``."""
    values = {key: yaml.safe_load(text) for key, text in given.items()}
    where = f"--task {name}, "
    if name != "dataset" and name not in BENCHMARKS:
        if name not in TASKS:
            raise DisaError("unknown task", where=where[:-2], fix=f"choose one of {', '.join([*TASKS, *BENCHMARKS])}")
        return _checked(TypeAdapter(TaskSection), {"name": name} | values, where)
    # A data set's settings are those of its one source, except for the few that are of the task.
    source = {key: values.pop(key) for key in list(values) if key in SourceConfig.model_fields}
    if data := values.pop("data", None):
        source["path" if Path(data).exists() or Path(data).suffix in (".jsonl", ".parquet") else "hub"] = data
    if name in BENCHMARKS:
        source["benchmark"] = name
    # Every row is evaluated, also of a data set that a run would divide.
    source.setdefault("use", split)
    return _checked(DatasetConfig, {"name": "dataset", "sources": [source]} | values, where)


def _checked(model: Any, values: dict[str, Any], where: str) -> Any:
    """Validate, with the first problem as one line."""
    try:
        return (model.validate_python if isinstance(model, TypeAdapter) else model.model_validate)(values)
    except ValidationError as error:
        problem = error.errors()[0]
        names = [part for part in problem["loc"] if isinstance(part, str)]
        name = names[-1] if names else ""
        unknown = problem["type"] == "extra_forbidden"
        message = f"unknown setting '{name}'" if unknown else problem["msg"].removeprefix("Value error, ")
        place = where + (name.replace("_", "-") if where == "--" else "" if unknown else name)
        fix = "remove it, or correct its name" if unknown else "correct the value"
        raise DisaError(message, where=place.rstrip("-, ") or "command line", fix=fix) from error


def _refuse_twice(what: str, names: list[str], fix: str) -> None:
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise DisaError(f"two {what}s are called '{twice[0]}'", where="command line", fix=fix)
