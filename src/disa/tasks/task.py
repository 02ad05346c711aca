"""What every task offers, and how its instances are drawn and split."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from disa.config import StageConfig
from disa.errors import DisaError
from disa.runs.records import Prompt

SPLITS = ("train", "validation", "heldout", "warmup")
# Instances drawn without finding a new one for an open split before the space counts as exhausted.
_PATIENCE = 20_000


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What became of a data set's rows, as JSON values."""

    facts: dict[str, Any]
    """For the stage's manifest: sources, what vouches for them, and counts."""
    left_out: dict[str, list[Any]]
    """For a file beside it: every row that is not a prompt, and why."""


class Task(ABC):
    """A source of prompts and the judge of completions."""

    name: str
    version: int
    """Raised whenever prompts, reward or modes change for the same configuration."""
    config: Any
    """Each task names its own class: a ``TaskConfig`` where prompts are generated."""
    key_columns: tuple[str, ...] | None = None
    """Columns that, with the prompt, make the prompt's id, where rows are Python's own; None where the id is given."""

    def __init__(self, config: StageConfig) -> None:
        self.config = config

    @property
    def fingerprint(self) -> str:
        """Name and version of the task."""
        return f"{self.name}:{self.version}"

    @property
    def reward_fingerprint(self) -> str:
        """Name, version and range of the reward."""
        return f"{self.fingerprint}{list(self.reward_range)}"

    tools: str = "none"
    """Identity of what answers the model while it writes."""
    judged_when_drawn: bool = False
    """Whether trajectories come with their reward: where tools or environments took part."""
    reads_token_ids: bool = False
    """Whether ``rewards`` takes the completions' token ids as a third argument."""
    has_modes: bool = True
    """Whether every correct completion has a mode."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest reward."""
    characters: str = ""
    """Those of generated prompts and solutions beside the template's own."""

    @property
    def alphabet(self) -> str:
        """Every character of a prompt, a demonstration or a solution: what a character tokenizer needs."""
        return self.characters + self.config.prompt_template.format(**{p.strip("{}"): "" for p in self.config.places})

    @abstractmethod
    def mode(self, prompt: Prompt, completion: str) -> str | None:
        """Canonical form of a correct completion, None for any other, and where the task knows no modes."""

    @abstractmethod
    def demonstration(self, prompt: Prompt, rng: random.Random, *, noisy: bool) -> str:
        """A random solution in random surface form; a noisy one is well-formed but solves it only by chance."""

    def reward(self, prompt: Prompt, completion: str) -> float | None:
        """1 for a correct completion, else 0; None where a verifier can decide neither."""
        return float(self.mode(prompt, completion) is not None)

    def rewards(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        """Rewards of many completions, each with its prompt, in order: what the stages call.

        Override it, instead of ``reward``, where judging many at once is faster.
        """
        return [self.reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def examples(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """One prompt for each way of judging, by which a verifier can be tried."""
        return list(prompts[:1])

    def data_report(self) -> DataReport | None:
        """Where fixed rows came from and which were left out; None where prompts are generated."""
        return None

    # The default prompts() is made of the four below. A task over fixed rows overrides prompts() instead.

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        """Payload of one random instance, None where this draw gives no valid one."""
        raise NotImplementedError

    def identity(self, payload: dict[str, Any]) -> str:
        """What makes two instances the same problem, whatever the order or labels they are written in."""
        raise NotImplementedError

    def text(self, payload: dict[str, Any]) -> str:
        """The prompt."""
        raise NotImplementedError

    def solutions(self, prompt: Prompt) -> list[str]:
        """Canonical forms of all solutions, sorted: the exact set of modes."""
        raise NotImplementedError

    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of one split.

        Raises DisaError where the space of instances is too small for the sizes asked.
        """
        return self._all_prompts[split]

    @functools.cached_property
    def _all_prompts(self) -> dict[str, list[Prompt]]:
        rng = random.Random(self.config.seed)
        found: dict[str, dict[str, Prompt]] = {split: {} for split in SPLITS}
        since_new = 0
        while open_splits := [s for s in SPLITS if len(found[s]) < self.config.size(s)]:
            payload = self.draw(rng)
            since_new += 1
            if payload is not None:
                split, text = self._split(self.identity(payload)), self.text(payload)
                if split in open_splits and text not in found[split]:
                    found[split][text] = self._prompt(split, text, payload)
                    since_new = 0
            if since_new > _PATIENCE:
                raise DisaError(
                    f"only {len(found[open_splits[0]])} distinct prompts found for split {open_splits[0]}, "
                    f"{self.config.size(open_splits[0])} asked",
                    where=f"tasks, field {open_splits[0]}_prompts",
                    fix="ask for fewer prompts, lower min_solutions, or widen the task's ranges",
                )
        return {split: list(rows.values()) for split, rows in found.items()}

    def _split(self, identity: str) -> str:
        """An instance's split is a function of its identity, in proportion to the sizes: no overlap is possible."""
        sizes = [self.config.size(split) for split in SPLITS]
        number = int(hashlib.sha256(identity.encode()).hexdigest(), 16) % sum(sizes)
        for split, size in zip(SPLITS, sizes, strict=True):
            if number < size:
                return split
            number -= size
        raise AssertionError("unreachable: number < sum(sizes)")

    def _prompt(self, split: str, text: str, payload: dict[str, Any]) -> Prompt:
        prompt_id = hashlib.sha256(f"{self.name}\0{text}".encode()).hexdigest()[:16]
        prompt = Prompt(prompt_id, self.name, split, text, json.dumps(payload), None)
        return Prompt(prompt_id, self.name, split, text, prompt.payload, len(self.solutions(prompt)))


def chosen_prompts(prompts: list[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """``limit`` of the prompts, those of the smallest hash, in their order: a larger limit only adds to them."""
    if limit is None or limit >= len(prompts):
        return prompts
    order = {p.prompt_id: hashlib.sha256(f"{seed}\0{p.prompt_id}".encode()).digest() for p in prompts}
    kept = set(sorted(order, key=order.__getitem__)[:limit])
    return [p for p in prompts if p.prompt_id in kept]


@functools.lru_cache(maxsize=65536)
def read_payload(prompt: Prompt, *fields: str) -> tuple[Any, ...]:
    """Fields of a prompt's payload.

    Raises DisaError where the payload is not a JSON object or lacks a field.
    """
    where = f"prompt {prompt.prompt_id}, field payload"
    try:
        payload = json.loads(prompt.payload)
        return tuple(payload[name] for name in fields)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DisaError(
            f"expected a JSON object with {', '.join(fields)}, found {prompt.payload[:60]!r}",
            where=where,
            fix="regenerate the prompts with the tasks stage",
        ) from error
