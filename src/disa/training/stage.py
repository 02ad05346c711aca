"""The training stage: one method's policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disa.anchor import Anchor
from disa.lm.models import Models
from disa.lm.sampling_config import SamplingConfig
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, ScoredTrajectory
from disa.runs.stage import Stage
from disa.runs.step_log import read_step_log
from disa.tasks import Task
from disa.training import run
from disa.training.config import TrainingConfig
from disa.training.methods import METHODS


def training_stage(
    method: str,
    config: TrainingConfig,
    folder: str,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: Callable[[], list[Prompt]],
    inputs: dict[str, StageFolder],
    anchor: Callable[[], StageFolder],
    scores: Callable[[], dict[str, StageFolder]],
) -> Stage:
    """Describe the training of one method; only what the method reads becomes an input."""
    frozen = anchor() if METHODS[method].anchor else None
    scored = scores() if config.reads_trajectories(method) else {}

    def work(stage: StageFolder) -> None:
        rows = prompts()
        known = {row.prompt_id for row in rows}
        offline = [row for folder in scored.values() for row in folder.thin_rows(ScoredTrajectory)]
        offline = [row for row in offline if row.prompt_id in known and row.reward is not None]
        loaded = Anchor.load(frozen.path) if frozen else None
        run.run_training(stage, method, config, sampling, task, rows, models.paths["reference"], loaded, offline)

    identity: dict[str, Any] = {"training": config.method_identity(method), "sampling": sampling.identity()}
    identity |= {"reward": task.reward_fingerprint} | models.identity("reference")
    inputs = inputs | ({"anchor": frozen} if frozen else {}) | scored
    return Stage("training", folder, run.VERSION, identity, inputs, work, by="launch", says=_says)


def _says(folder: StageFolder) -> list[str]:
    """Of the whole log, not its last line alone: one step without a reward says little."""
    logged = [line for line in read_step_log(folder.path / "steps.jsonl") if "reward" in line]
    if not logged:
        return []
    names = ("reward", "kl_to_target", "completions/clipped_ratio")
    last = ", ".join(f"{name} {logged[-1][name]:.3f}" for name in names if name in logged[-1])
    lines = [f"last logged step: {last}"]
    if all(line["reward"] == 0 for line in logged):
        lines.append("warning: the reward was 0 in every logged step, so nothing was learnt from it")
    return lines
