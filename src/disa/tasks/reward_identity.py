"""What a reward function is, so that another one is noticed."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from disa.errors import DisaError
from disa.lm.digests import weights_digest
from disa.runs.provenance import digest


def reward_fingerprint(reward_funcs: Sequence[Callable[..., Any]], weights: Sequence[float]) -> str:
    """Identity of a weighted sum of reward functions; those of weight 0 are for logging and do not count.

    Of each, its own ``fingerprint`` attribute where it has one (the project's task rewards do). Else, of a reward model
    the digest of its weights, and of a function, method, partial or callable object that of its source and of the plain
    values it holds. Raises DisaError where a function's source cannot be read, or it holds more than plain values.
    """
    named = [(w, _identity(function)) for function, w in zip(reward_funcs, weights, strict=True) if w != 0]
    return "+".join(name if w == 1.0 else f"{w:g}*{name}" for w, name in named)


def _identity(function: Any) -> str:
    own = getattr(function, "fingerprint", None)
    if own is not None:
        return own
    if isinstance(function, nn.Module):
        return f"{type(function).__name__}:{weights_digest(function)}"
    return f"{name_of(function)}:{digest(content_of(function, 'reward function', 'reward_funcs'))}"


def name_of(function: Any) -> str:
    """Name of a callable for messages."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)


def content_of(function: Any, kind: str, where: str) -> Any:
    """What a callable computes, as plain JSON: its own ``fingerprint``, or its source and the plain values it holds.

    Raises DisaError where the source cannot be read, or it holds more than plain values.
    """
    try:
        content = _content(function)
        digest(content)  # fails for what is no JSON
    except (OSError, TypeError, RecursionError) as error:
        raise DisaError(
            f"what {kind} {name_of(function)} computes cannot be told ({str(error).splitlines()[0]})",
            where=where,
            fix="give it an attribute fingerprint: a text that you change whenever it computes something else, and "
            "that is the anchor's",
        ) from error
    return content


def _content(function: Any) -> Any:
    """Source and held values; TypeError or OSError where there is no such thing."""
    own = getattr(function, "fingerprint", None)
    if own is not None:
        return own
    if isinstance(function, functools.partial):
        return [_content(function.func), function.args, function.keywords]
    if isinstance(function, types.MethodType):
        return [_content(function.__func__), _content(function.__self__)]
    if isinstance(function, types.FunctionType):
        held = [_held(cell.cell_contents) for cell in function.__closure__ or ()]
        source = inspect.getsource(function)
        # A function alone keeps the identity that its source gives it.
        return [source, *held] if held else source
    if isinstance(function, type):
        return [inspect.getsource(base) for base in function.__mro__ if base is not object]
    return [inspect.getsource(type(function)), vars(function)]


def _held(value: Any) -> Any:
    return _content(value) if callable(value) else value
