"""The tasks stage: the prompts of every split."""

from __future__ import annotations

from disa.runs.folders import StageFolder, write_json
from disa.runs.records import Prompt
from disa.runs.stage import Stage
from disa.tasks.task import SPLITS, Task

VERSION = 1


def tasks_stage(task: Task) -> Stage:
    """Describe the stage that writes a task's prompts."""

    def work(stage: StageFolder) -> None:
        for split in SPLITS:
            stage.write_part(split, task.prompts(split), Prompt)
        report = task.data_report()
        if report is not None:
            write_json(stage.path / "left_out.json", report.left_out)
        counts = {split: len(task.prompts(split)) for split in SPLITS}
        stage.finish(prompts=counts, data=report and report.facts)

    identity = task.config.identity() | {"task": task.fingerprint}
    return Stage("tasks", "1_tasks", VERSION, identity, {}, work, says=_says)


def _says(folder: StageFolder) -> list[str]:
    return [", ".join(f"{count} {split}" for split, count in folder.manifest["prompts"].items() if count) + " prompts"]
