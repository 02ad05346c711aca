"""The completions of a training's last step, for people to read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from disa.runs.files import whole_file


class LastCompletions(TrainerCallback):
    """Writes them, a JSON line each, before the last checkpoint: one that resumes after it draws none again.

    Of a method that draws none the file is empty.
    """

    def __init__(self, trainer: Any, path: Path) -> None:
        self._trainer, self._path = trainer, path

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last step."""
        if state.global_step < state.max_steps or not state.is_world_process_zero:
            return
        kept = getattr(self._trainer, "_logs", {"prompt": [], "completion": [], "rewards": {}})
        rewards = list(zip(*kept["rewards"].values(), strict=True))
        with whole_file(self._path, "w") as file:
            for prompt, completion, reward in zip(kept["prompt"], kept["completion"], rewards, strict=True):
                texts = (text if isinstance(text, str) else text[-1]["content"] for text in (prompt, completion))
                line = {"step": state.global_step, **dict(zip(("prompt", "completion"), texts, strict=True))}
                # The task's reward is the only one; NaN means undecided.
                file.write(json.dumps(line | {"reward": None if math.isnan(reward[0]) else reward[0]}) + "\n")
