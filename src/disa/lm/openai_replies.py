"""What a server of the OpenAI protocol sends back: whole JSON replies and server-sent events, checked.

A reply is either complete or :class:`TryAgain`, never a shortened text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """One completion."""

    text: str
    finish_reason: str
    """``stop``, or ``length`` where the limit cut it; others as the server names them."""
    prompt_tokens: int | None
    completion_tokens: int | None
    """As the server counts them, None where it does not say."""
    model: str
    """Name under which the server says it answered."""
    logprobs: Any = None
    """As the server sent them, where they were asked for."""
    whole: dict[str, Any] | None = None
    """Everything the server sent, None where it came in pieces."""


class TryAgain(Exception):
    """A failure that another try may cure."""

    def __init__(self, problem: str, pause: float | None = None) -> None:
        super().__init__(problem)
        self.pause = pause


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Complete lines of a body that arrives in pieces."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def reply_from_json(data: bytes, model: str) -> Reply:
    """Read the completion of a whole reply; ``model`` is its name where the server names none."""
    value = _load(data)
    try:
        choice, usage = value["choices"][0], value.get("usage") or {}
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        # A reasoning model that used up its tokens before answering sends null.
        reply = _reply("" if text is None else text, choice, usage, value.get("model") or model)
        return dataclasses.replace(reply, whole=value)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise TryAgain(f"the reply is no completion: {data[:200].decode(errors='replace')!r}") from error


def reply_from_stream(lines: Iterable[bytes], model: str) -> Reply:
    """Join server-sent events; without a finish reason or the final ``[DONE]`` the stream was cut."""
    texts: list[str] = []
    finish: str | None = None
    usage: dict[str, Any] = {}
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        event = _load(data)
        try:
            if "error" in event:
                raise TryAgain(f"the server broke the stream off: {str(event['error'])[:200]}")
            usage, model = event.get("usage") or usage, event.get("model") or model
            for choice in event.get("choices") or []:
                part = choice["delta"].get("content") if "delta" in choice else choice["text"]
                texts.append("" if part is None else part)
                finish = choice.get("finish_reason") or finish
        except (KeyError, TypeError, AttributeError) as error:
            raise TryAgain(f"an event of the stream is no completion: {data[:200]!r}") from error
    else:
        raise TryAgain("the stream ended without [DONE]")
    if finish is None:
        raise TryAgain("the stream ended without a finish reason")
    try:
        return _reply("".join(texts), {"finish_reason": finish}, usage, model)
    except TypeError as error:
        raise TryAgain("the stream holds text that is no text") from error


def _reply(text: str, choice: dict[str, Any], usage: dict[str, Any], model: str) -> Reply:
    if not isinstance(text, str):
        raise TypeError
    tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Reply(text, choice.get("finish_reason") or "stop", *tokens, model, choice.get("logprobs"))


def _load(data: bytes) -> dict[str, Any]:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TryAgain(f"the reply is not valid JSON: {data[:200].decode(errors='replace')!r}") from error
