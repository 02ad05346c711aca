"""Rewards as every stage takes them: checked against the task's declared range."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from disa.errors import DisaError
from disa.runs.records import Prompt
from disa.tasks.task import Task


def checked_rewards(
    task: Task, prompts: Sequence[Prompt], completions: Sequence[str], completion_ids: Sequence[Sequence[int]] = ()
) -> list[float | None]:
    """The task's rewards, checked: bounded numbers, None where a completion stays undecided.

    Raises DisaError where the task raises, returns another number of rewards, NaN, or a number outside its declared
    range.
    """
    low, high = task.reward_range
    fix = f"return a number in {list(task.reward_range)} for every completion"
    given: Any = (prompts, completions, completion_ids) if task.reads_token_ids else (prompts, completions)
    try:
        rewards = task.rewards(*given)
    except DisaError:
        raise
    except Exception as error:
        culprit = _first_that_raises(task, *given)
        where = f"task {task.name}, {culprit}field reward"
        raise DisaError(f"the reward raised {type(error).__name__}: {error}", where=where, fix=fix) from error
    if len(rewards) != len(completions):
        problem = f"{len(rewards)} rewards for {len(completions)} completions"
        raise DisaError(problem, where=f"task {task.name}, field reward", fix=fix)
    for prompt, completion, reward in zip(prompts, completions, rewards, strict=True):
        # A NaN compares false, so it is refused as well.
        if reward is not None and not (isinstance(reward, numbers.Real) and low <= reward <= high):
            raise DisaError(
                f"the reward is {reward}, expected a number in [{low}, {high}], or None where it stays undecided",
                where=f"task {task.name}, prompt {prompt.prompt_id}, field reward",
                fix=f"{fix} (here {completion[:60]!r})",
            )
    return [None if reward is None else float(reward) for reward in rewards]


def check_range(reward: float, reward_range: tuple[float, float], *, where: str, fix: str) -> None:
    """Refuse a number outside of the range that log Z is estimated for, but for rounding: TRL sums rewards in float32.

    NaN passes: the completion is undecided.
    """
    low, high = reward_range
    slack = 1e-5 * max([1.0, *(abs(end) for end in reward_range if math.isfinite(end))])
    if not (math.isnan(reward) or (math.isfinite(reward) and low - slack <= reward <= high + slack)):
        raise DisaError(
            f"a reward is {reward:g}, expected a number in [{low:g}, {high:g}], or None where undecided",
            where=where,
            fix=fix,
        )


def _first_that_raises(task: Any, *given: Sequence[Any]) -> str:
    """Find, for the message, the prompt whose completion alone makes the rewards raise; empty where none does."""
    for row in zip(*given, strict=True):
        try:
            task.rewards(*([value] for value in row))
        except Exception:
            return f"prompt {row[0].prompt_id}, "
    return ""
