"""The pace of this machine: the real stages, on few prompts and few steps, timed part by part and step by step.

Nothing is modelled: what runs is the pipeline's own code with the recipe's models, lengths and batch sizes. A stage
is taken to need ``overhead + pace x units``. The pace is the median time of the parts (or steps) after the first, the
overhead what else the rehearsed stage took: loading, warming up, writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from disa.lm.sampling_config import encode_prompt
from disa.pipeline import Pipeline
from disa.planning.model_shape import ModelShape
from disa.planning.work import TextLengths
from disa.recipe import Recipe
from disa.runs.folders import read_json
from disa.runs.locks import exclusive
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, Trajectory
from disa.runs.step_log import read_step_log
from disa.training.methods import METHODS


@dataclasses.dataclass(frozen=True)
class StagePace:
    """How long one stage takes here."""

    overhead: float
    """Seconds, whatever the amount of work."""
    per_unit: float = 0.0
    """Seconds per unit: a step (``warmup``), a token (``3_scoring``), a prompt (``4_partition``), else a completion."""

    def seconds(self, units: float) -> float:
        """Time for so many units."""
        return self.overhead + self.per_unit * units


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found out."""

    shape: ModelShape
    lengths: TextLengths
    prompts: dict[str, int]
    """Of the whole recipe, by split."""
    paces: dict[str, StagePace]
    """By stage folder; ``7_evaluation/reference`` stands for every model's."""


class _FewPrompts(Pipeline):
    """The pipeline on the first training prompts and no others, every fourth completion of it counted as a success.

    Rewards are computed as ever, which takes its time. But a model that is warmed up for a few steps solves nothing,
    and methods that learn from solved trajectories would find none.
    """

    def __init__(self, recipe: Recipe, train: int) -> None:
        super().__init__(recipe, say=lambda line: None)
        self._kept = {"train": train, "validation": 0, "heldout": 0}
        judge, best = self.task.rewards, self.task.reward_range[1]

        def lucky(prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
            return [reward if i % 4 else best for i, reward in enumerate(judge(prompts, completions))]

        vars(self.task)["rewards"] = lucky

    def _prompts(self, *splits: str) -> list[Prompt]:
        rows = super()._prompts(*splits)
        return [row for s in splits for row in [r for r in rows if r.split == s][: self._kept.get(s)]]

    def rehearse(self) -> None:
        """All stages that run the model; one evaluation stands for all."""
        self.run("training")
        with exclusive(self.run_dir):
            self.evaluate("reference", None, "7_evaluation/reference")


def rehearse(recipe: Recipe) -> Rehearsal:
    """Run a small version of the recipe in a temporary folder and take its times."""
    # The stages' progress bars would count up to numbers that are not the recipe's.
    with tempfile.TemporaryDirectory(prefix="disa-plan-") as folder, contextlib.redirect_stdout(io.StringIO()):
        small = _small(recipe, folder)
        pipeline = _FewPrompts(small, max(small.evaluation.train_prompts, small.training.prompts_per_step))
        pipeline.rehearse()
        model = pipeline.models.load(("reference",))["reference"]
        return _read(recipe, small, pipeline, ModelShape.of(model), pipeline.models.tokenizer())


def _small(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with few steps and few prompts.

    Time is linear in the batch for models that keep the machine busy: a batch per part and a micro-batch per step do.
    A small model's pace depends on the batch, so it gets the recipe's own parts and steps, which cost it little.
    """
    proposals, training, evaluation = recipe.proposals, recipe.training, recipe.evaluation
    if recipe.warmup and recipe.warmup.base == "small":
        parts, steps, batches = 4, 6, 1_000_000
        prompts_per_step = training.prompts_per_step
    else:
        parts, steps, batches = 2, 3, 1
        completions = training.micro_batch or training.completions_per_step
        prompts_per_step = max(1, completions // training.completions_per_prompt)
    block = min(proposals.prompts_per_part, max(1, batches * proposals.batch_size // proposals.per_prompt))
    judged = min(evaluation.prompts_per_part, max(1, batches * evaluation.batch_size // evaluation.samples_per_prompt))
    prompts = max(parts * block, parts * judged)
    changes: dict[str, dict[str, Any]] = {
        # Rounds draw and score as the first draws do, and what they learn about log Z is not rehearsed.
        "proposals": {"prompts_per_part": block, "adaptive": None, "resample": None},
        "scoring": {"trajectories_per_part": -(-prompts * proposals.per_prompt // parts)},
        # A regressor and flags are for estimates of some quality.
        "partition": {"regressor": False},
        "training": {
            "flagged": "train",
            "steps": steps,
            "steps_of": {},
            "prompts_per_step": prompts_per_step,
            "save_every": steps,
            "log_every": 1,
        },
        "evaluation": {"prompts_per_part": judged, "train_prompts": prompts},
    }
    if recipe.warmup:
        runs = {name: getattr(recipe.warmup, name) for name in ("reference", "proposal")}
        runs = {name: run and run.model_copy(update={"steps": steps}) for name, run in runs.items()}
        changes["warmup"] = {"log_every": 1, **runs}
    sections = {name: getattr(recipe, name).model_copy(update=change) for name, change in changes.items()}
    return recipe.model_copy(update=sections | {"run_dir": folder})


def _read(recipe: Recipe, small: Recipe, pipeline: _FewPrompts, shape: ModelShape, tokenizer: Any) -> Rehearsal:
    folder, sampling = Path(small.run_dir), recipe.sampling
    prompts, drawn = read_rows(folder / "1_tasks", Prompt), read_rows(folder / "2_proposals", Trajectory)
    tokens = {p.prompt_id: len(encode_prompt(tokenizer, p.prompt, sampling)) for p in prompts if p.split != "warmup"}
    scored = sum(tokens[row.prompt_id] + len(row.completion_ids) for row in drawn)
    completion = statistics.fmean(len(row.completion_ids) for row in drawn)
    demonstration = 0.0
    if recipe.warmup:
        # After a few steps a model writes anything; after all of them, texts as long as the demonstrations.
        rng = random.Random(0)
        texts = [pipeline.task.demonstration(p, rng, noisy=False) for p in prompts if p.split == "warmup"]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        completion = demonstration = min(1 + statistics.fmean(map(len, ids)), sampling.max_completion_length)

    paces = {name: StagePace(_seconds(folder / name)) for name in ("1_tasks", "5_anchor")}
    partition = _seconds(folder / "4_partition") / len({row.prompt_id for row in drawn})
    paces["4_partition"] = StagePace(0.0, partition)
    if recipe.warmup:
        logs = [folder / "warmup" / f"{name}.jsonl" for name in ("proposal", "reference")]
        paces["warmup"] = _of_steps(folder / "warmup", [log for log in logs if log.is_file()], units=1)
    paces["2_proposals"] = _of_parts(folder / "2_proposals", units=1)
    paces["3_scoring"] = _of_parts(folder / "3_scoring", units=scored / len(drawn))
    for method in recipe.training.methods:
        stage = folder / "6_training" / method
        paces[f"6_training/{method}"] = _of_steps(
            stage,
            [stage / "steps.jsonl"],
            units=small.training.completions_per_step,
            every=small.training.method_uses(method) if METHODS[method].generates else 1,
        )
    paces["7_evaluation/reference"] = _of_parts(folder / "7_evaluation" / "reference", units=1)
    by_split = {split: sum(p.split == split for p in prompts) for split in ("train", "validation", "heldout")}
    lengths = TextLengths(statistics.fmean(tokens.values()), completion, demonstration)
    return Rehearsal(shape, lengths, by_split, paces)


def _seconds(stage: Path) -> float:
    return read_json(stage / "manifest.json")["seconds"]


def _of_parts(stage: Path, *, units: float) -> StagePace:
    """From the times at which the parts appeared; ``units`` of each row."""
    parts = sorted(stage.glob("*.parquet"), key=lambda part: part.stat().st_mtime)
    rows = [pq.read_metadata(part).num_rows for part in parts]
    at = [part.stat().st_mtime for part in parts]
    if len(parts) == 1:
        return StagePace(0.0, _seconds(stage) / (units * rows[0]))
    pace = statistics.median((at[i] - at[i - 1]) / (units * rows[i]) for i in range(1, len(parts)))
    return StagePace(max(0.0, _seconds(stage) - pace * units * sum(rows)), pace)


def _of_steps(stage: Path, logs: list[Path], *, units: float, every: int = 1) -> StagePace:
    """From the step logs of one or two runs; ``units`` of each ``every`` steps."""
    at = [[line["wall_time"] for line in read_step_log(log)][every - 1 :: every] for log in logs]
    pace = statistics.median(b - a for times in at for a, b in zip(times, times[1:], strict=False)) / units
    return StagePace(max(0.0, _seconds(stage) - pace * units * sum(map(len, at))), pace)
