"""The log of a training, one JSON line per logged step."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from disa.runs import worked
from disa.runs.files import whole_file
from disa.runs.progress import progress_bar


class StepLog(TrainerCallback):
    """Writes a trainer's log lines to a JSONL file and shows a progress bar.

    There is a line at every checkpoint and after the last step, whatever the interval of the log: the last line's
    ``wall_time`` is then that of the whole training, and a resumed one goes on from its checkpoint's.

    On resuming, lines past the checkpoint's step are dropped first, so that no step stands twice. Of the processes of
    one launch, the first one does so.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path, self.title = path, title
        self._progress = progress_bar()
        self._task: Any = None
        self._earlier_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines of steps that will be done again and open the bar."""
        if not state.is_world_process_zero:
            return
        kept = [line for line in read_step_log(self.path) if line["step"] <= state.global_step]
        with whole_file(self.path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._earlier_seconds = kept[-1]["wall_time"] if kept else 0.0
        self._started = time.monotonic()
        self._progress.start()
        self._task = self._progress.add_task(self.title, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a line where one is due; move the bar."""
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True
        if self._task is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Append one line."""
        if "train_runtime" in logs or not state.is_world_process_zero:
            return
        seconds = self._earlier_seconds + time.monotonic() - self._started
        line = {"step": state.global_step, "wall_time": round(seconds, 3), **logs}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        worked.note_work(self.path.parent)

    def close(self) -> None:
        """Close the bar; transformers calls no callback where training raises, so whoever trains does."""
        if self._progress.live.is_started:
            self._progress.stop()


def read_step_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a step log; a last line cut by a kill is dropped."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines
