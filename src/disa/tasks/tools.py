"""What answers a model while it writes: TRL's tools, environments and rollout functions."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from disa.errors import DisaError
from disa.runs.provenance import digest
from disa.tasks.reward_identity import content_of, name_of

TEMPLATE_ARGUMENTS = ("tools", "chat_template")
"""Arguments of a chat template that TRL's trainer gives by itself."""


@dataclasses.dataclass(frozen=True)
class Tools:
    """The arguments of :class:`trl.GRPOTrainer` of these names, and its limit on rounds of calls.

    Attributes
    ----------
    tools : sequence of callable
        With types and a docstring each.
    environment_factory : callable, optional
        Makes an object with ``reset(**row)``, whose other public methods are tools.
    rollout_func : callable, optional
        ``(prompts, trainer)`` to ``prompt_ids``, ``completion_ids``, ``logprobs`` and, where it wrote itself,
        ``env_mask``.
    rounds : int, optional
        ``max_tool_calling_iterations``.
    """

    tools: Sequence[Callable[..., Any]] = ()
    environment_factory: Callable[[], Any] | None = None
    rollout_func: Callable[..., Any] | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.environment_factory, dict):
            raise DisaError(
                "environment_factory is a dict; several environments in one run are not supported yet",
                where="environment_factory",
                fix="give one factory",
            )

    def __bool__(self) -> bool:
        return bool(self.tools or self.environment_factory or self.rollout_func)

    def as_given(self) -> dict[str, Any]:
        """Arguments of the trainer."""
        names = ("environment_factory", "rollout_func")
        return {"tools": list(self.tools) or None} | {name: getattr(self, name) for name in names}

    @functools.cached_property
    def identity(self) -> str:
        """Names and a digest of the sources, as of reward functions; ``none`` where there is nothing."""
        if not self:
            return "none"
        given = [f for f in (*self.tools, self.environment_factory, self.rollout_func) if f is not None]
        contents = [content_of(f, "tool", "tools, environment_factory or rollout_func") for f in given]
        limit = "" if self.rounds is None else f", at most {self.rounds} rounds"
        return f"{'+'.join(map(name_of, given))}:{digest(contents)}{limit}"

    @functools.cached_property
    def _environment(self) -> Any:
        return self.environment_factory() if self.environment_factory else None

    @property
    def reward(self) -> str | None:
        """Identity of the environment's own reward, where it has one; its source is part of :attr:`identity`."""
        owns = hasattr(type(self._environment), "get_reward")
        return f"{type(self._environment).__name__}.get_reward" if owns else None

    def prompt(self, row: Mapping[str, Any]) -> Any:
        """A row's prompt with what the environment says at its start."""
        said = self._environment.reset(**row) if self.environment_factory else None
        if said is None:
            return row["prompt"]
        *before, last = row["prompt"]
        if not isinstance(said, str) or not isinstance(last["content"], str):
            problem = f"reset returned {type(said).__name__}, expected text or None; images are not supported yet"
            raise DisaError(problem, where="environment_factory", fix="return text")
        return [*before, last | {"content": last["content"] + said}]

    def template_arguments(self, tokenizer: Any) -> dict[str, Any]:
        """What TRL adds to the arguments of the chat template.

        Those are the tools' schemas, and another template where the tokenizer's does not keep prefixes.
        """
        from transformers.utils import get_json_schema
        from trl.chat_template_utils import get_training_chat_template, is_chat_template_prefix_preserving

        environment = type(self._environment)
        names = [n for n, _ in inspect.getmembers(environment, inspect.isfunction)] if self.environment_factory else []
        methods = [n for n in names if n not in ("reset", "get_reward") and not n.startswith("_")]
        called = [*self.tools, *(getattr(self._environment, name) for name in methods)]
        if not called:
            return {}
        found: dict[str, Any] = {"tools": [get_json_schema(function) for function in called]}
        if not is_chat_template_prefix_preserving(tokenizer):
            found["chat_template"] = get_training_chat_template(tokenizer)
        return found
