"""A language model as judge of strategies: asked in both orders, retried, cached, its abstentions counted."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from disa.evaluation.judge_protocol import (
    DIFFERENT,
    SAME,
    UNCLEAR,
    label_messages,
    pair_messages,
    read_labels,
    read_pair,
    reminded,
)
from disa.lm.openai_client import OpenAIClient
from disa.runs.folders import read_json, write_json

ANSWER_TRIES = 3
"""Answers asked for until one can be read: a judge that fails three times on one question is not going to succeed."""
CHARACTERS_PER_TOKEN = 2.5
"""For the estimate only, on the dear side: English has about 4, formulas and code about 3, and questions about short
solutions, which are half nonces, were seen to have 2.6 (SmolLM2's tokenizer)."""

Message = dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class StrategyVerdict:
    """Whether two solutions use the same strategy, or why that is not known."""

    value: str | None
    """``same`` or ``different``, None for an abstention."""
    reason: str
    """``asked`` or ``identical`` texts; of an abstention ``unclear`` (said the judge), ``order`` (the answer changed
    with the order of the solutions) or ``unreadable``."""


@dataclasses.dataclass(frozen=True)
class JudgeCost:
    """What judging will take at most, answers that have to be repeated aside."""

    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True)
class _Question:
    messages: list[Message]
    read: Callable[[str], Any]


class Judge:
    """Asks one model about strategies.

    Answers are kept in the folder ``cache`` by request: an equal one is asked once, in all runs that share it.
    ``request`` holds further fields of every request, such as ``response_format``; null leaves a field out.
    """

    def __init__(
        self, client: OpenAIClient, cache: Path, *, max_tokens: int, temperature: float, request: dict[str, Any]
    ) -> None:
        self._client, self._cache = client, Path(cache)
        fields = {"max_tokens": max_tokens, "temperature": temperature} | request
        self._options = {name: value for name, value in fields.items() if value is not None}
        self._max_tokens = max_tokens

    def cost(self, groups: Iterable[tuple[str, Sequence[str]]], mode: str) -> JudgeCost:
        """Estimate of judging these (problem, solutions), answers in the cache being free."""
        requests = {self._key(q): q for problem, solutions in groups for q in _questions(problem, solutions, mode)}
        new = [q for key, q in requests.items() if not self._file(key).is_file()]
        characters = sum(len(m["content"]) for q in new for m in q.messages)
        tokens = round(characters / CHARACTERS_PER_TOKEN)
        return JudgeCost(len(new), len(requests) - len(new), tokens, len(new) * self._max_tokens)

    def judge(
        self, groups: Sequence[tuple[str, Sequence[str]]], mode: str, advance: Callable[[], None]
    ) -> list[dict[tuple[int, int], StrategyVerdict]]:
        """Verdict on every pair of solutions of every (problem, solutions), by their positions i < j.

        Raises DisaError where the server gives no reply; answers so far are in the cache. With ``mode`` ``pairs`` there
        is one question per pair, with ``labels`` one per problem, each asked in both orders. ``advance`` is called
        after every answer.
        """
        questions = {self._key(q): q for problem, solutions in groups for q in _questions(problem, solutions, mode)}
        answers = {}
        for key, answer in zip(questions, self._client.map(self._ask, questions.items()), strict=True):
            answers[key] = answer
            advance()
        verdicts = _pairwise if mode == "pairs" else _by_labels
        return [verdicts(problem, solutions, lambda q: answers[self._key(q)]) for problem, solutions in groups]

    def _ask(self, item: tuple[str, _Question]) -> Any:
        key, question = item
        file = self._file(key)
        if file.is_file():
            return read_json(file)["answer"]
        for attempt in range(ANSWER_TRIES):
            messages = question.messages if attempt == 0 else reminded(question.messages)
            # A server that honours seeds would otherwise repeat the unreadable answer.
            seed = {"seed": attempt} if attempt else {}
            reply = self._client.chat(messages, **self._options | seed)
            answer = question.read(reply.text)
            if answer is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, {"answer": answer, "tries": attempt + 1, "model": reply.model})
                return answer
        return None  # not cached: another run may have more luck

    def _key(self, question: _Question) -> str:
        endpoint = self._client.endpoint
        request = [endpoint.url, endpoint.model, question.messages, self._options]
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    def _file(self, key: str) -> Path:
        return self._cache / key[:2] / f"{key}.json"


def _questions(problem: str, solutions: Sequence[str], mode: str) -> list[_Question]:
    if mode == "pairs":
        pairs = itertools.combinations(solutions, 2)
        asked = [(a, b) for a, b in pairs if not _identical(a, b)]
        return [_pair(problem, x, y) for a, b in asked for x, y in ((a, b), (b, a))]
    orders = (list(solutions), list(reversed(solutions)))
    return [_label(problem, order) for order in orders] if len(solutions) > 1 else []


def _pair(problem: str, first: str, second: str) -> _Question:
    nonce, messages = pair_messages(problem, first, second)
    return _Question(messages, lambda text: read_pair(text, nonce))


def _label(problem: str, solutions: Sequence[str]) -> _Question:
    nonce, messages = label_messages(problem, solutions)
    return _Question(messages, lambda text: read_labels(text, nonce, len(solutions)))


def _pairwise(
    problem: str, solutions: Sequence[str], answer: Callable[[_Question], str | None]
) -> dict[tuple[int, int], StrategyVerdict]:
    def asked(i: int, j: int) -> str | None:
        return answer(_pair(problem, solutions[i], solutions[j]))

    return _compared(solutions, asked, lambda i, j: asked(j, i))


def _by_labels(
    problem: str, solutions: Sequence[str], answer: Callable[[_Question], list[int] | None]
) -> dict[tuple[int, int], StrategyVerdict]:
    if len(solutions) < 2:
        return {}
    forward, backward = (answer(q) for q in _questions(problem, solutions, "labels"))
    backward = backward[::-1] if backward is not None else None
    return _compared(solutions, partial(_same_label, forward), partial(_same_label, backward))


def _compared(
    solutions: Sequence[str], first: Callable[[int, int], str | None], second: Callable[[int, int], str | None]
) -> dict[tuple[int, int], StrategyVerdict]:
    """Verdicts on all pairs; what both orders of the solutions gave is asked for only where a pair differs."""
    return {
        (i, j): StrategyVerdict(SAME, "identical") if _identical(a, b) else _combine(first(i, j), second(i, j))
        for (i, a), (j, b) in itertools.combinations(enumerate(solutions), 2)
    }


def _same_label(labels: list[int] | None, i: int, j: int) -> str | None:
    if labels is None:
        return None
    return UNCLEAR if 0 in (labels[i], labels[j]) else SAME if labels[i] == labels[j] else DIFFERENT


def _combine(first: str | None, second: str | None) -> StrategyVerdict:
    """One verdict from both orders: a judge that changes its mind with the order has not judged the solutions."""
    if first is None or second is None:
        return StrategyVerdict(None, "unreadable")
    if UNCLEAR in (first, second):
        return StrategyVerdict(None, "unclear")
    return StrategyVerdict(first, "asked") if first == second else StrategyVerdict(None, "order")


def _identical(first: str, second: str) -> bool:
    return first.split() == second.split()
