"""A task and the prompts of it that ``disa evaluate`` asks."""

from __future__ import annotations

import dataclasses
import hashlib

from disa.errors import DisaError
from disa.runs.provenance import digest
from disa.runs.records import Prompt
from disa.tasks import Task


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


def chosen_prompts(prompts: list[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """``limit`` of the prompts, picked by the seed, in their order; all of them where there are no more."""
    if limit is None or limit >= len(prompts):
        return prompts
    order = {p.prompt_id: hashlib.sha256(f"{seed}\0{p.prompt_id}".encode()).digest() for p in prompts}
    kept = set(sorted(order, key=order.__getitem__)[:limit])
    return [p for p in prompts if p.prompt_id in kept]
