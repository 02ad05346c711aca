"""What answers a model while it writes: TRL's tools, environments and rollout functions."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from disa.errors import DisaError
from disa.runs.provenance import digest
from disa.tasks.reward_identity import content_of, name_of

TEMPLATE_ARGUMENTS = ("tools", "chat_template")
"""Arguments of a chat template that TRL's trainer gives by itself."""


EMPTY_PROMPT = [{"role": "user", "content": ""}]
"""Of a row without a prompt, to which ``reset`` adds one, as in TRL."""

Environments = Callable[[], Any] | dict[str, Callable[[], Any]]
"""A factory, or several by the name in a row's column ``environment``."""


@dataclasses.dataclass(frozen=True)
class Tools:
    """The arguments of :class:`trl.GRPOTrainer` of these names, and its limit on rounds of calls.

    Attributes
    ----------
    tools : sequence of callable
        With types and a docstring each.
    environment_factory : callable or dict of callables, optional
        Makes an object with ``reset(**row)``, whose other public methods are tools. Of several, each row names its own.
    rollout_func : callable, optional
        ``(prompts, trainer)`` to ``prompt_ids``, ``completion_ids``, ``logprobs`` and, where it wrote itself,
        ``env_mask``.
    rounds : int, optional
        ``max_tool_calling_iterations``.
    """

    tools: Sequence[Callable[..., Any]] = ()
    environment_factory: Environments | None = None
    rollout_func: Callable[..., Any] | None = None
    rounds: int | None = None

    def __bool__(self) -> bool:
        return bool(self.tools or self.environment_factory or self.rollout_func)

    @property
    def several(self) -> bool:
        """Whether rows name their environment."""
        return isinstance(self.environment_factory, dict)

    @property
    def _factories(self) -> dict[Any, Callable[[], Any]]:
        given = self.environment_factory
        return dict(sorted(given.items())) if isinstance(given, dict) else {None: given} if given else {}

    def as_given(self) -> dict[str, Any]:
        """Arguments of the trainer; environments in the order of their names, which rewards are named in."""
        factories = self._factories if self.several else self.environment_factory
        return {"tools": list(self.tools) or None, "environment_factory": factories, "rollout_func": self.rollout_func}

    @functools.cached_property
    def identity(self) -> str:
        """Names and a digest of the sources, as of reward functions; ``none`` where there is nothing."""
        if not self:
            return "none"
        factories = self._factories
        given = [f for f in (*self.tools, *factories.values(), self.rollout_func) if f is not None]
        contents = [content_of(f, "tool", "tools, environment_factory or rollout_func") for f in given]
        limit = "" if self.rounds is None else f", at most {self.rounds} rounds"
        return f"{'+'.join(map(name_of, given))}:{digest([*contents, *filter(None, factories)])}{limit}"

    @functools.cached_property
    def _environments(self) -> dict[Any, Any]:
        return {name: make() for name, make in self._factories.items()}

    @property
    def rewards(self) -> dict[Any, str | None]:
        """Identity of each environment's own reward, None where it has none; its source is in :attr:`identity`."""
        kinds = {name: type(made) for name, made in self._environments.items()}
        return {n: f"{kind.__name__}.get_reward" if hasattr(kind, "get_reward") else None for n, kind in kinds.items()}

    def environment(self, row: Mapping[str, Any]) -> str | None:
        """Name of a row's environment, None where there is one for all."""
        name = row.get("environment") if self.several else None
        if self.several and name not in self._factories:
            problem = f"environment is {name!r}, expected one of {', '.join(self._factories)}"
            raise DisaError(problem, where="data set, column environment", fix="name the row's environment")
        return name

    def with_prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows, those without a prompt with an empty one where an environment speaks first."""
        for row in rows:
            self.environment(row)
        return [({"prompt": EMPTY_PROMPT} if self.environment_factory else {}) | dict(row) for row in rows]

    def prompt(self, row: Mapping[str, Any]) -> Any:
        """A row's prompt with what the environment says at its start."""
        if not self.environment_factory:
            return row["prompt"]
        name = self.environment(row)
        given = {key: value for key, value in row.items() if not (self.several and key == "environment")}
        try:
            said = self._environments[name].reset(**given)
        except TypeError as error:
            fix = "let reset take every column of a row and prompt_id: def reset(self, **row)"
            raise DisaError(f"reset failed: {error}", where="environment_factory", fix=fix) from error
        if said is None:
            return row["prompt"]
        *before, last = row["prompt"]
        if not isinstance(said, str) or not isinstance(last["content"], str):
            problem = f"reset returned {type(said).__name__}, expected text or None; images are not supported yet"
            raise DisaError(problem, where="environment_factory", fix="return text")
        return [*before, last | {"content": last["content"] + said}]

    def text(self, row: Mapping[str, Any]) -> str:
        """A row's prompt as :class:`disa.lm.sampling_config.SamplingConfig` reads it, with tools that are its own."""
        prompt = self.prompt(row)
        if self.several:
            return json.dumps({"messages": prompt, "tools": self._schemas(self.environment(row)) or None})
        return prompt if isinstance(prompt, str) else json.dumps(prompt)

    def template_arguments(self, tokenizer: Any) -> dict[str, Any]:
        """What TRL adds to the arguments of the chat template, the same for all rows.

        Those are the tools' schemas, and another template where the tokenizer's does not keep prefixes.
        """
        from trl.chat_template_utils import get_training_chat_template, is_chat_template_prefix_preserving

        names = self._environments or [None]
        if not any(schemas := [self._schemas(name) for name in names]):
            return {}
        found: dict[str, Any] = {} if self.several else {"tools": schemas[0]}
        if not is_chat_template_prefix_preserving(tokenizer):
            found["chat_template"] = get_training_chat_template(tokenizer)
        return found

    def _schemas(self, name: str | None) -> list[Any]:
        """Schemas of all tools of an environment."""
        from transformers.utils import get_json_schema

        made = self._environments.get(name)
        names = [n for n, _ in inspect.getmembers(type(made), inspect.isfunction)] if made is not None else []
        methods = [n for n in names if n not in ("reset", "get_reward") and not n.startswith("_")]
        return [get_json_schema(f) for f in (*self.tools, *(getattr(made, name) for name in methods))]
