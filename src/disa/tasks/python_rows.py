"""Rows of a data set in memory as a task: prompts with ids made from the rows, rewards by Python functions."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from disa.config import StageConfig
from disa.errors import DisaError
from disa.runs.provenance import digest
from disa.runs.records import Prompt
from disa.tasks.reward_functions import RewardFunctions
from disa.tasks.task import SPLITS, Task
from disa.tasks.tools import Tools

_MESSAGES = "give prompts as lists of messages: [{'role': 'user', 'content': ...}]"

TASK: Final = "rows"
VERSION = 1


class PythonRowsConfig(StageConfig):
    """What a run depends on of rows that no file holds."""

    name: Literal["rows"] = TASK
    digest: str
    """Of every row's key."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    key_columns: tuple[str, ...] = ()
    train_prompts: None = None


def prompt_key(row: Mapping[str, Any], key_columns: Sequence[str]) -> str:
    """Id of a row: a digest of its prompt and of the named columns.

    Raises DisaError where a column is missing or holds no JSON value.
    """
    missing = [name for name in ("prompt", *key_columns) if name not in row]
    if missing:
        raise DisaError(
            f"column '{missing[0]}' is missing, found {', '.join(row)}",
            where="data set",
            fix="give the columns that the anchor was calibrated with, or set key_columns",
        )
    try:
        text = json.dumps([row["prompt"], {name: row[name] for name in key_columns}], sort_keys=True)
    except TypeError as error:
        raise DisaError(
            f"a column holds no JSON value ({error})",
            where="data set, key_columns",
            fix="set key_columns to columns of text and numbers",
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rows_identity(key_columns: Sequence[str]) -> str:
    """Name and version of rows as a task, and the columns that, with the prompt, make a prompt's id."""
    return f"{TASK}:{VERSION}:{','.join(key_columns)}"


class PythonRows(Task):
    """Rows with a column ``prompt`` (text, or messages), and a reward given by Python functions.

    Equal rows are one prompt; ``key_columns`` make its id with the prompt. ``tools`` answer while a completion is
    written: trajectories are then judged as they are drawn.
    """

    name = TASK
    version = VERSION
    has_modes = False
    reads_token_ids = True

    def __init__(
        self,
        train: Sequence[Mapping[str, Any]],
        heldout: Sequence[Mapping[str, Any]],
        reward: RewardFunctions,
        reward_range: tuple[float, float],
        key_columns: Sequence[str],
        tools: Tools | None = None,
    ) -> None:
        self._reward, self.reward_range, self._tools = reward, reward_range, tools or Tools()
        self.judged_when_drawn, self.tools = bool(tools), self._tools.identity
        self._rows = {"train": _by_key(train, key_columns)}
        known = self._rows["train"]
        self._rows["heldout"] = {k: row for k, row in _by_key(heldout, key_columns).items() if k not in known}
        keys: dict[str, Any] = {split: sorted(rows) for split, rows in self._rows.items()}
        keys |= {"tools": self.tools} if tools else {}
        super().__init__(
            PythonRowsConfig(digest=digest(keys), reward_range=reward_range, key_columns=tuple(key_columns))
        )
        self.key_columns = tuple(key_columns)
        self.messages = not isinstance(next(iter(known.values()))["prompt"], str)
        if not self.messages and (self._tools.tools or self._tools.environment_factory):
            raise DisaError(
                "prompts are texts, and tools need messages", where="data set, column prompt", fix=_MESSAGES
            )

    @property
    def fingerprint(self) -> str:
        """Name and version of the task and the columns that make a prompt's id."""
        return rows_identity(self.config.key_columns)

    @property
    def reward_fingerprint(self) -> str:
        """Identity of the reward functions, as the trainer takes it."""
        return self._reward.fingerprint

    def row(self, prompt_id: str) -> dict[str, Any]:
        """The row of a prompt, with its id, as a trainer's data set has it."""
        return next(rows[prompt_id] for rows in self._rows.values() if prompt_id in rows) | {"prompt_id": prompt_id}

    @property
    def alphabet(self) -> str:
        """Every character of a prompt."""
        return "".join(sorted({c for prompts in self._all_prompts.values() for p in prompts for c in p.prompt}))

    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of one split."""
        return self._all_prompts[split]

    @functools.cached_property
    def _all_prompts(self) -> dict[str, list[Prompt]]:
        return {split: [self._prompt_of(key, split) for key in self._rows.get(split, {})] for split in SPLITS}

    def _prompt_of(self, key: str, split: str) -> Prompt:
        row = self.row(key)
        others = {name: value for name, value in row.items() if name not in ("prompt", "prompt_id")}
        return Prompt(key, TASK, split, self._tools.text(row), json.dumps(others, default=repr), None)

    def rewards(
        self, prompts: Sequence[Prompt], completions: Sequence[str], completion_ids: Sequence[Sequence[int]] = ()
    ) -> list[float | None]:
        """Rewards as the trainer's own path gives them: columns as lists, chat completions as messages, token ids."""
        if self.judged_when_drawn:
            return [None] * len(prompts)
        rows = [self._rows[p.split][p.prompt_id] for p in prompts]
        columns = {name: [row.get(name) for row in rows] for name in rows[0] if name != "prompt"} if rows else {}
        given = [[{"role": "assistant", "content": c}] for c in completions] if self.messages else list(completions)
        return self._reward([row["prompt"] for row in rows], given, columns, [list(ids) for ids in completion_ids])

    def mode(self, prompt: Prompt, completion: str) -> None:
        """No modes: the rows do not list their solutions."""
        return None

    def demonstration(self, prompt: Prompt, rng: random.Random, *, noisy: bool) -> str:
        """Refuse: models are given, and nothing is warmed up."""
        raise DisaError("rows in memory have no demonstrations", where="disa.calibrate", fix="give models")


def _by_key(rows: Sequence[Mapping[str, Any]], key_columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {prompt_key(row, key_columns): dict(row) for row in rows}
