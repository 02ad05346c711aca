"""The evaluation stage: one model, sampled and judged."""

from __future__ import annotations

from collections.abc import Callable

from disa.evaluation import run
from disa.evaluation.config import EvaluationConfig
from disa.lm.loading import load_model
from disa.lm.models import Models
from disa.lm.sampling_config import SamplingConfig
from disa.runs.folders import StageFolder
from disa.runs.records import EvaluationRecord, Prompt
from disa.runs.stage import Stage, share_text
from disa.tasks import Task


def evaluation_stage(
    name: str,
    config: EvaluationConfig,
    folder: str,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: Callable[..., list[Prompt]],
    splits: tuple[str, ...],
    inputs: dict[str, StageFolder],
    trained: StageFolder | None,
) -> Stage:
    """Describe the evaluation of one model on some splits, of the reference where none is trained."""

    def work(stage: StageFolder) -> None:
        reference = models.load(("reference",), config.compute)["reference"]
        model = load_model(trained.path / "model", config.compute) if trained else reference
        rows = prompts(*splits)
        run.run_evaluation(stage, name, config, sampling, task, rows, model, reference, models.tokenizer())

    identity = {"evaluation": config.identity(), "sampling": sampling.identity(), "splits": list(splits)}
    identity |= {"reward": task.reward_fingerprint} | models.identity("reference")
    inputs = inputs | ({"training": trained} if trained else {})
    return Stage("evaluation", folder, run.VERSION, identity, inputs, work, by="parts", says=_says)


def _says(folder: StageFolder) -> list[str]:
    rows = folder.rows(EvaluationRecord)
    rewards = [row.reward for row in rows if row.reward is not None]
    mean = f"mean reward {sum(rewards) / len(rewards):.3f}" if rewards else "no reward decided"
    return [f"{mean}, cut {share_text(sum(row.truncated for row in rows), len(rows))}"]
