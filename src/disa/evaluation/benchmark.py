"""Draw and judge every model's completions of every task's problems, part by part.

``OUTPUT/samples/TASK/MODEL`` is a stage folder: finished work is skipped, half-done work continues, work of other
settings is moved aside.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from disa.config import StageConfig
from disa.errors import DisaError
from disa.evaluation.generation import GenerationSettings
from disa.evaluation.models import Completion, ModelSpec, Source
from disa.evaluation.samples import JudgedSample
from disa.runs.folders import StageFolder
from disa.runs.parts import Advance, blocks_of, make_parts
from disa.runs.provenance import digest
from disa.runs.records import Prompt, write_rows
from disa.tasks import Task

VERSION = 1


class ServerSettings(StageConfig):
    """How served models are reached; none of it changes what is measured."""

    timeout: float = Field(600.0, gt=0)
    """Seconds one try may take."""
    attempts: int = Field(6, ge=1)
    """Tries of one request."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at once."""
    stream: bool = False
    """Receive completions piece by piece."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A task and the problems of it that are evaluated."""

    name: str
    task: Task
    prompts: list[Prompt]

    @classmethod
    def of(cls, task: Task, *, name: str, split: str, limit: int | None, seed: int) -> Benchmark:
        """All prompts of a split, or ``limit`` of them chosen by the seed: a larger limit only adds to them.

        Raises
        ------
        DisaError
            Where the split has no prompt.
        """
        prompts = task.prompts(split)
        if not prompts:
            raise DisaError(f"split {split} has no prompts", where=f"task {name}", fix="choose another split")
        return cls(name, task, chosen(prompts, limit, seed))

    @property
    def content(self) -> str:
        """Digest of the problems' texts and of what their rewards need."""
        return digest([[p.prompt_id, p.prompt, p.payload] for p in self.prompts])


def chosen(prompts: list[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """``limit`` of the prompts, picked by the seed, in their order; all of them where there are no more."""
    if limit is None or limit >= len(prompts):
        return prompts
    order = {p.prompt_id: hashlib.sha256(f"{seed}\0{p.prompt_id}".encode()).digest() for p in prompts}
    kept = set(sorted(order, key=order.__getitem__)[:limit])
    return [p for p in prompts if p.prompt_id in kept]


def evaluate_model(
    output: Path,
    spec: ModelSpec,
    benchmarks: Sequence[Benchmark],
    settings: GenerationSettings,
    server: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, StageFolder]:
    """Finished sample folders of one model, by benchmark; the model is loaded only where work is left.

    Raises
    ------
    DisaError
        Where the model cannot be loaded or reached, or a reward leaves its declared range.
    """
    folders, source = {}, None
    for benchmark in benchmarks:
        identity = {
            "model": spec.identity(),
            "settings": settings.identity(),
            "task": benchmark.task.fingerprint,
            "reward": benchmark.task.reward_fingerprint,
            "problems": benchmark.content,
        }
        name = f"samples/{benchmark.name}/{spec.name}"
        stage = StageFolder(output, name, version=VERSION, identity=identity, inputs={})
        folders[benchmark.name] = stage
        stage.path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(stage.path.parent / "problems.parquet", benchmark.prompts, Prompt)
        if stage.finished:
            say(f"{name}: finished earlier, nothing changed")
            continue
        stage.begin()
        source = source or spec.open(settings, server)
        _sample(stage, spec.name, benchmark, settings, source)
        say(f"{name}: done in {stage.manifest['seconds']:.1f} s")
    return folders


def _sample(stage: StageFolder, model: str, benchmark: Benchmark, settings: GenerationSettings, source: Source) -> None:
    samples = settings.samples

    def make(block: Sequence[Prompt], advance: Advance) -> list[JudgedSample]:
        jobs = [(p, draw) for p in block for draw in range(samples)]
        return judged(model, benchmark, jobs, source.draw(jobs))

    blocks = blocks_of(benchmark.prompts, settings.problems_per_part)
    title = f"{model} on {benchmark.name}"
    total = make_parts(stage, blocks, lambda block: len(block) * samples, make, JudgedSample, title)
    stage.finish(model=model, problems=len(benchmark.prompts), samples=total, source=source.facts())


def judged(
    model: str, benchmark: Benchmark, jobs: Sequence[tuple[Prompt, int]], completions: Sequence[Completion]
) -> list[JudgedSample]:
    """Rows of drawn completions with the verdicts of the task's verifier."""
    rewards = checked_rewards(benchmark.task, [p for p, _ in jobs], [c.text for c in completions])
    return [
        JudgedSample(
            model=model,
            task=benchmark.name,
            prompt_id=prompt.prompt_id,
            draw=draw,
            completion=completion.text,
            completion_tokens=completion.tokens,
            truncated=completion.truncated,
            reward=reward,
            mode=_mode(benchmark.task, prompt, completion.text),
        )
        for (prompt, draw), completion, reward in zip(jobs, completions, rewards, strict=True)
    ]


def _mode(task: Task, prompt: Prompt, completion: str) -> str | None:
    return task.mode(prompt, completion) if prompt.n_solutions is not None else None


def checked_rewards(task: Task, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
    """Rewards of many completions, None where the verifier came to no verdict.

    Raises
    ------
    DisaError
        Where a reward is NaN or leaves the task's declared range.
    """
    rewards = task.rewards(prompts, completions)
    low, high = task.reward_range
    for prompt, reward in zip(prompts, rewards, strict=True):
        if reward is not None and (math.isnan(reward) or not low <= reward <= high):
            raise DisaError(
                f"the reward is {reward}, expected a number in [{low}, {high}] or None for no verdict",
                where=f"task {task.name}, prompt {prompt.prompt_id}, field reward",
                fix="correct the task's verifier or its declared range",
            )
    return [None if r is None else float(r) for r in rewards]
