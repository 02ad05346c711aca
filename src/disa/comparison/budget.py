"""Equal budgets: a method draws less in training by the offline trajectories that it reads.

With S batches of B sequences, R the offline trajectories a method reads and R_max the most that any compared method
reads, a method that draws its own completions gets in every batch::

    B + (R_max - R) / S

so that drawn + read = S B + R_max for all of them, whatever number of optimiser steps uses each batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from disa.runs.records import ScoredTrajectory
from disa.training.config import TrainingConfig
from disa.training.methods import METHODS


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one method is given."""

    steps: int
    """Batches of completions."""
    prompts_per_step: int
    """Distinct prompts of a batch."""
    drawn_per_step: int
    """Completions of a batch, drawn in training."""
    stored_per_step: int
    """Stored trajectories that a step learns from: of offline methods, and in ``disa_both`` beside as many drawn."""
    read: int
    """Offline trajectories read, for log Z, for a baseline or to learn from; however often, counted once."""

    @property
    def drawn(self) -> int:
        """Completions drawn in training."""
        return self.steps * self.drawn_per_step

    @property
    def completions(self) -> int:
        """Drawn and read."""
        return self.drawn + self.read


def trajectories_read(method: str, config: TrainingConfig, rows: Sequence[ScoredTrajectory]) -> int:
    """Offline trajectories of the training prompts that a method depends on, by itself or through the anchor."""
    if METHODS[method].anchor or METHODS[method].reads == "all":
        return len(rows)
    return config.value_samples * len({row.prompt_id for row in rows}) if METHODS[method].reads == "values" else 0


def equal_budgets(configs: Mapping[str, TrainingConfig], read: Mapping[str, int], *, equal: str) -> dict[str, Budget]:
    """Budget of every method.

    ``read`` is of :func:`trajectories_read`; ``equal`` is ``completions`` or ``steps``.
    """
    most = max(read.values())
    return {
        method: _budget(method, config, read[method], most - read[method] if equal == "completions" else 0)
        for method, config in configs.items()
    }


def _budget(method: str, config: TrainingConfig, read: int, more: int) -> Budget:
    group = config.completions_per_prompt
    generates = METHODS[method].generates
    # Whole groups, and whole micro-batches: a step's prompts are a multiple of this.
    unit = math.lcm(group, config.micro_batch or group) // group
    wanted = config.prompts_per_step + (more / (config.steps * group) if generates else 0)
    prompts = max(unit, unit * round(wanted / unit))
    sequences = prompts * group
    drawn, stored = (sequences if learns else 0 for learns in (generates, config.learns_from_stored(method)))
    return Budget(config.steps, prompts, drawn, stored, read)
