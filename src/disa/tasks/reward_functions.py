"""TRL reward functions as one reward: called, summed with weights, and named by what they are."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from disa.errors import DisaError
from disa.tasks.reward_identity import name_of, reward_fingerprint
from disa.tasks.tools import Tools

RewardFunction = Callable[..., Any]
Rewards = Any
"""A reward function, a reward model, its name, or a sequence of them."""


class RewardFunctions:
    """A weighted sum of TRL reward functions, weights being 1 by default.

    They are called as TRL calls them, with ``prompts``, ``completions``, ``completion_ids`` and every column, and give
    one value per completion: functions, partials, objects, coroutine functions; sequence classifiers, by name, folder
    or object, with their tokenizers (``processing_classes``, None for that beside the model) and arguments of their
    chat templates. A function of weight 0 is not called: it is for logging. With ``tools``, TRL's trainer judges what
    it draws: only the identity is asked for then.
    """

    def __init__(
        self,
        functions: Rewards,
        weights: Sequence[float] | None,
        processing_classes: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Tools | None = None,
    ) -> None:
        called = list(functions) if isinstance(functions, list | tuple) else [] if functions is None else [functions]
        tokenizers = processing_classes if isinstance(processing_classes, list) else [processing_classes] * len(called)
        if len(tokenizers) != len(called):
            raise DisaError(
                f"{len(tokenizers)} reward_processing_classes for {len(called)} reward functions",
                where="reward_processing_classes",
                fix="give one per reward function, None for those that are no models",
            )
        weights = [1.0] * len(called) if weights is None else list(weights)
        if len(weights) != len(called):
            raise DisaError(
                f"{len(weights)} reward weights for {len(called)} reward functions",
                where="reward_weights",
                fix="give one weight per function",
            )
        for i, function in enumerate(called):
            if isinstance(function, str) or hasattr(function, "parameters"):
                from disa.tasks.reward_model import RewardModel

                called[i] = RewardModel(function, tokenizers[i], chat_template_kwargs or {})
            elif not callable(function):
                raise DisaError(
                    f"{function!r} is no reward function",
                    where="reward_funcs",
                    fix="give functions of (prompts, completions, ...), or sequence classifiers",
                )
        self._used = [(f, w) for f, w in zip(called, weights, strict=True) if w != 0]
        own = tools.rewards if tools else {}
        if not self._used and (not own or None in own.values()):
            lacking = "".join(f", and environment {name!r} has no get_reward" for name, r in own.items() if r is None)
            fix = "give one of a weight above 0"
            raise DisaError(f"no reward function counts{lacking}", where="reward_funcs", fix=fix)
        for name in dict.fromkeys(filter(None, own.values())):
            called, weights = [*called, SimpleNamespace(fingerprint=name)], [*weights, 1.0]
        self.fingerprint = reward_fingerprint(called, weights)

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        columns: dict[str, list[Any]],
        completion_ids: list[list[int]],
    ) -> list[float | None]:
        """Sum of each completion's decided rewards; None where any function of the sum leaves it undecided."""
        given: dict[str, Any] = columns | {"prompts": prompts, "completions": completions}
        given |= {
            "completion_ids": completion_ids,
            "trainer_state": None,
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
        }
        totals: list[float | None] = [0.0] * len(prompts)
        for function, weight in self._used:
            found = function(**given)
            found = asyncio.run(found) if inspect.iscoroutine(found) else found
            if found is None or len(found) != len(prompts):
                raise DisaError(
                    f"{'no' if found is None else len(found)} rewards for {len(prompts)} completions",
                    where=f"reward function {name_of(function)}",
                    fix="return one value per completion, None where it cannot be judged",
                )
            for i, value in enumerate(found):
                total = totals[i]
                undecided = value is None or math.isnan(value)
                totals[i] = None if undecided or total is None else total + weight * float(value)
        return totals
