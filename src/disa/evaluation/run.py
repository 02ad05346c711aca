"""Sample one model on prompts and judge the samples, part by part: in a run's stage, and in ``disa evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disa.evaluation.config import EvaluationConfig
from disa.evaluation.generation import GenerationSettings
from disa.evaluation.models import ModelSpec
from disa.evaluation.sources import LocalSource, Source
from disa.evaluation.task_prompts import TaskPrompts
from disa.lm.sampling_config import SamplingConfig
from disa.runs.folders import StageFolder
from disa.runs.parquet_rows import write_rows
from disa.runs.parts import Advance, blocks_of, make_parts
from disa.runs.records import CORRECT_REWARD, EvaluationRecord, Prompt
from disa.tasks import Task
from disa.tasks.checked_rewards import checked_rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 3


def run_evaluation(
    stage: StageFolder,
    name: str,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    task: Task,
    prompts: list[Prompt],
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write the evaluation records of one model of a run, beside any other processes that do the same.

    ``model`` and ``reference`` are the same object where the reference itself is evaluated.
    """
    # All of the other splits, then some training prompts.
    train = [p for p in prompts if p.split == "train"][: config.train_prompts]
    evaluated = TaskPrompts(task.name, task, [*(p for p in prompts if p.split != "train"), *train])
    settings = GenerationSettings.of_run(config, sampling)
    sample_model(stage, name, evaluated, settings, LocalSource(model, tokenizer, settings, sampling, reference))


def evaluate_model(
    output: Path,
    spec: ModelSpec,
    tasks: Sequence[TaskPrompts],
    settings: GenerationSettings,
    server: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, StageFolder]:
    """Finished sample folders of one model, by task; the model is loaded only where work is left.

    ``OUTPUT/samples/TASK/MODEL`` is a stage folder: finished work is skipped, half-done work continues, work of other
    settings is moved aside. Raises DisaError where the model cannot be loaded or reached, or a reward leaves its
    declared range.
    """
    folders, source = {}, None
    for asked in tasks:
        identity = {
            "model": spec.identity(),
            "settings": settings.identity(),
            "task": asked.task.fingerprint,
            "reward": asked.task.reward_fingerprint,
            "problems": asked.content,
        }
        name = f"samples/{asked.name}/{spec.name}"
        stage = folders[asked.name] = StageFolder(output, name, version=VERSION, identity=identity, inputs={})
        stage.path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(stage.path.parent / "problems.parquet", asked.prompts, Prompt)
        if stage.finished:
            say(f"{name}: finished earlier, nothing changed")
            continue
        stage.begin()
        source = source or spec.open(settings, server)
        sample_model(stage, spec.name, asked, settings, source, source.facts)
        say(f"{name}: done in {stage.manifest['seconds']:.1f} s")
    return folders


def sample_model(
    stage: StageFolder,
    name: str,
    asked: TaskPrompts,
    settings: GenerationSettings,
    source: Source,
    facts: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Draw and judge what is missing in a stage folder, and finish it; ``facts`` are then recorded with it."""

    def make(block: Sequence[Prompt], advance: Advance) -> list[EvaluationRecord]:
        return draw_and_judge(
            name, asked, [(p, draw) for p in block for draw in range(settings.samples)], source, advance
        )

    blocks = blocks_of(asked.prompts, settings.problems_per_part)
    title = f"evaluation: {name}"
    total = make_parts(stage, blocks, lambda block: len(block) * settings.samples, make, EvaluationRecord, title)
    known = {} if facts is None else {"source": facts()}
    stage.finish(model=name, prompts=len(asked.prompts), samples=total, **known)


def draw_and_judge(
    name: str, asked: TaskPrompts, jobs: Sequence[tuple[Prompt, int]], source: Source, advance: Advance
) -> list[EvaluationRecord]:
    """Drawn completions with the verdicts of the task's verifier; a correct one has a mode where the task names any."""
    completions = source.draw(jobs, advance)
    rewards = checked_rewards(asked.task, [p for p, _ in jobs], [c.text for c in completions])
    return [
        EvaluationRecord(
            model=name,
            task=asked.name,
            prompt_id=prompt.prompt_id,
            split=prompt.split,
            draw=draw,
            completion=c.text,
            completion_tokens=c.tokens,
            truncated=c.truncated,
            reward=reward,
            mode=asked.task.mode(prompt, c.text) if reward is not None and reward >= CORRECT_REWARD else None,
            log_pi=c.log_pi,
            log_ref=c.log_ref,
        )
        for (prompt, draw), c, reward in zip(jobs, completions, rewards, strict=True)
    ]
