"""A user's reward function, written as TRL's trainers call it, with a declared range that is enforced.

``function(prompts=..., completions=..., **columns)`` returns one number or None per completion. It may be
``async``. None means undecided: the completion is left out and counted, never taken for a 0.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from disa.errors import DisaError

RANGE_FIX = (
    "clip in the function, or declare the true range (its attribute reward_range, or the setting reward_range): "
    "log Z lies between beta times its ends, and every interval is built on that"
)


class CustomReward:
    """A reward function found by name, its range checked at every call.

    ``name`` is ``module:function``, or ``path/to/file.py:function`` for a file that is not installed; its range by
    default the function's attribute ``reward_range``, else (0, 1). ``conversational`` hands prompts and completions
    over as lists of messages, as TRL does for chat data. Raises DisaError where the function cannot be imported, or its
    range is not two finite, increasing numbers.
    """

    def __init__(
        self, name: str, reward_range: tuple[float, float] | None = None, *, conversational: bool = False
    ) -> None:
        self.name = name
        self._function = import_function(name)
        self._conversational = conversational
        low, high = getattr(self._function, "reward_range", (0.0, 1.0)) if reward_range is None else reward_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DisaError(
                f"reward range [{low}, {high}] is not two finite, increasing numbers",
                where=f"reward {name}",
                fix="declare the smallest and the largest reward the function can return",
            )
        self.reward_range = (float(low), float(high))
        self._mode: Any = getattr(sys.modules[self._function.__module__], "mode", None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is its name: the function is imported where it arrives."""
        module, _, function = self.name.rpartition(":")
        name = f"{Path(module).resolve()}:{function}" if module.endswith(".py") else self.name
        return partial(CustomReward, conversational=self._conversational), (name, self.reward_range)

    @property
    def fingerprint(self) -> str:
        """The function's own ``fingerprint`` attribute, else its name and a digest of the file it is in.

        The whole file counts, so that a changed helper function changes the reward's identity too.
        """
        own = getattr(self._function, "fingerprint", None)
        if own is not None:
            return str(own)
        source = Path(inspect.getfile(inspect.unwrap(self._function))).read_bytes()
        return f"{self.name.rpartition(':')[2]}:{hashlib.sha256(source).hexdigest()[:16]}"

    @property
    def mode(self) -> Callable[[str, str], str] | None:
        """What ``mode(prompt, completion)`` beside the reward function calls a correct completion; None without it."""
        return self._named if callable(self._mode) else None

    def _named(self, prompt: str, completion: str) -> str:
        fix = "return a string that is equal for solutions of one kind"
        try:
            name = self._mode(prompt, completion)
        except Exception as error:
            raise DisaError(
                f"mode raised {type(error).__name__}: {error}", where=f"reward {self.name}", fix=fix
            ) from error
        if not isinstance(name, str):
            found = f"mode returned {name!r} for the correct completion {completion[:60]!r}, expected a string"
            raise DisaError(found, where=f"reward {self.name}", fix=fix)
        return name

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: dict[str, list[Any]]
    ) -> list[float | None]:
        """One checked reward per completion, in order.

        Raises DisaError where the function raises, returns another number of rewards, something that is not a number,
        NaN, or a number outside the range.
        """
        shown: tuple[Sequence[Any], Sequence[Any]] = (prompts, completions)
        if self._conversational:
            shown = (
                [[{"role": "user", "content": text}] for text in prompts],
                [[{"role": "assistant", "content": text}] for text in completions],
            )
        rewards = self._run(prompts=shown[0], completions=shown[1], **columns)
        if len(rewards) != len(completions):
            raise self._error(
                f"returned {len(rewards)} rewards for {len(completions)} completions",
                fix="return one reward per completion, None for one that it cannot decide",
            )
        return [self._checked(reward, text) for reward, text in zip(rewards, completions, strict=True)]

    def _run(self, **arguments: Any) -> list[Any]:
        try:
            result = self._function(**arguments)
            if inspect.isawaitable(result):
                # In a thread of its own: the caller may itself run inside an event loop, as notebooks do.
                with ThreadPoolExecutor(1) as pool:
                    result = pool.submit(asyncio.run, _awaited(result)).result()
            return list(result)
        except DisaError:
            raise
        except Exception as error:
            raise self._error(
                f"raised {type(error).__name__}: {error}",
                fix="correct the function; it is called with prompts, completions and the data's columns by name",
            ) from error

    def _checked(self, reward: Any, completion: str) -> float | None:
        if reward is None:
            return None
        low, high = self.reward_range
        about = f"for completion {completion[:60]!r}"
        try:
            number = float(reward)
        except (TypeError, ValueError) as error:
            raise self._error(f"returned {reward!r} {about}", fix="return a number or None") from error
        if math.isnan(number):
            raise self._error(f"returned NaN {about}", fix="return None for a completion that it cannot decide")
        if not low <= number <= high:
            raise self._error(
                f"returned {number:g} {about}, outside its declared range [{low:g}, {high:g}]", fix=RANGE_FIX
            )
        return number

    def _error(self, problem: str, *, fix: str) -> DisaError:
        return DisaError(f"the function {problem}", where=f"reward {self.name}", fix=fix)


async def _awaited(result: Any) -> Any:
    return await result


def import_function(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` or ``path/to/file.py:function`` names.

    Raises DisaError where the name has another form, or leads to nothing that can be called.
    """
    where = f"reward {name}"
    module_name, separator, function_name = name.rpartition(":")
    if not separator or not module_name or not function_name:
        raise DisaError(
            f"{name!r} names no reward function",
            where=where,
            fix="write module:function, or path/to/file.py:function",
        )
    try:
        module = (
            _import_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
    except Exception as error:
        raise DisaError(
            f"cannot import {module_name} ({type(error).__name__}: {error})",
            where=where,
            fix="install the module or correct its name; a file that is not installed is path/to/file.py:function",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "no" if function is None else f"a {type(function).__name__} as"
        raise DisaError(
            f"{module_name} has {found} {function_name}", where=where, fix="name a function the module defines"
        )
    return function


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    # Registered under a name of its own, so that what the file defines can find its module again.
    name = f"disa_reward_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
