"""A task and the prompts of it that ``disa evaluate`` asks."""

from __future__ import annotations

import dataclasses

from disa.errors import DisaError
from disa.runs.provenance import digest
from disa.runs.records import Prompt
from disa.tasks.task import Task, chosen_prompts


@dataclasses.dataclass(frozen=True)
class TaskPrompts:
    """A task, its name in every table and file, and the prompts of it that are evaluated."""

    name: str
    task: Task
    prompts: list[Prompt]

    @classmethod
    def of(cls, task: Task, *, name: str, split: str, limit: int | None, seed: int) -> TaskPrompts:
        """All prompts of a split, or ``limit`` of them chosen by the seed: a larger limit only adds to them.

        Raises DisaError where the split has no prompt.
        """
        prompts = task.prompts(split)
        if not prompts:
            raise DisaError(f"split {split} has no prompts", where=f"task {name}", fix="choose another split")
        return cls(name, task, chosen_prompts(prompts, limit, seed))

    @property
    def content(self) -> str:
        """Digest of the prompts' texts and of what their rewards need."""
        return digest([[p.prompt_id, p.prompt, p.payload] for p in self.prompts])
