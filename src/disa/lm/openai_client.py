"""A client for servers that speak the OpenAI protocol: chat and text completions, retried, in order.

Standard library only. Anything a second try may cure (429, 5xx, time-outs, dropped connections, replies that
are cut or no JSON) is tried again with exponential backoff, a bounded number of times; anything else is the
user's to fix and raised at once.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from disa.errors import DisaError
from disa.lm.openai_replies import Reply, TryAgain, lines_of, reply_from_json, reply_from_stream

PREFIX = "openai:"
KEY_VARIABLE = "OPENAI_API_KEY"
_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# No completion is this long; a server that never stops sending must not fill the memory.
_MAX_REPLY_BYTES = 64 * 2**20
# A server may ask for a pause, but not for an hour.
_LONGEST_PAUSE = 60.0

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served: ``openai:http://host:port/v1#model``."""

    url: str
    """Base address, without a slash at the end: ``/chat/completions`` is put behind it."""
    model: str
    """Name the server knows the model by."""

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ``openai:URL#MODEL``.

        Raises DisaError where scheme, host or model is missing, or the address holds a password.
        """
        address, _, model = text.removeprefix(PREFIX).partition("#")
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            problem = "expected openai:http://HOST:PORT/v1#MODEL"
            raise DisaError(problem, where=f"endpoint '{text}'", fix="give address and model name, joined by '#'")
        if parts.username or parts.password:
            problem = "the address holds a user name or password, which would be written into the results"
            raise DisaError(problem, where=f"endpoint at {parts.hostname}", fix=f"use the variable {KEY_VARIABLE}")
        return cls(address.rstrip("/"), model)


class OpenAIClient:
    """Requests to one endpoint; the key is read from ``OPENAI_API_KEY`` and never written anywhere.

    One of ``attempts`` tries may take ``timeout`` seconds, the whole reply included; the second waits ``backoff``
    seconds, each further one twice as long, up to a minute, with jitter. ``concurrency`` requests are under way at once
    in :meth:`map`. ``stream`` receives completions piece by piece, for gateways that close silent connections.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float = 600.0,
        attempts: int = 6,
        backoff: float = 1.0,
        concurrency: int = 8,
        stream: bool = False,
    ) -> None:
        assert attempts >= 1 and concurrency >= 1
        self.endpoint, self.timeout, self.attempts = endpoint, timeout, attempts
        self.backoff, self.concurrency, self.stream = backoff, concurrency, stream
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self.retries = 0
        """Tries that failed and were repeated, for the record."""

    def chat(self, messages: Sequence[dict[str, str]], **options: Any) -> Reply:
        """Answer a conversation (``/chat/completions``); options are the request's fields, such as ``max_tokens``.

        Raises DisaError where the server refuses the request, or every try failed.
        """
        return self._request("/chat/completions", {"messages": list(messages)}, options)

    def complete(self, prompt: str | Sequence[int], **options: Any) -> Reply:
        """Continue a text or token ids (``/completions``); options and errors as in :meth:`chat`."""
        return self._request("/completions", {"prompt": prompt if isinstance(prompt, str) else list(prompt)}, options)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``function`` of every item, ``concurrency`` at once, in the order of the items.

        The first error stops it: requests not yet begun are dropped.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        self._stop.clear()
        try:
            yield from pool.map(function, items)
        finally:
            # After an error or an interrupt nobody waits for the results of the others' further tries.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()

    def _request(self, path: str, content: dict[str, Any], options: dict[str, Any]) -> Reply:
        body = {"model": self.endpoint.model, **content, **options}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        problem = ""
        for attempt in range(self.attempts):
            try:
                return self._once(path, body)
            except TryAgain as error:
                problem = str(error)
                if attempt + 1 < self.attempts:
                    with self._lock:
                        self.retries += 1
                    if self._stop.wait(_pause(error.pause, self.backoff, attempt)):
                        break
        raise DisaError(
            f"no usable reply in {attempt + 1} tries, the last: {problem}",
            where=self.endpoint.url + path,
            fix="see whether the server is up and not overloaded; lower the concurrency or raise the time-out",
        )

    def _once(self, path: str, body: dict[str, Any]) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if key := os.environ.get(KEY_VARIABLE, "").strip():
            if not (key.isascii() and key.isprintable()):  # the HTTP library's own message would show it
                raise DisaError("the key has characters no key has", where=KEY_VARIABLE, fix="set it again")
            headers["Authorization"] = f"Bearer {key}"
        address = self.endpoint.url + path
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                pieces = _pieces(response, deadline)
                if self.stream and "event-stream" in response.headers.get("Content-Type", ""):
                    return reply_from_stream(lines_of(pieces), self.endpoint.model)
                data = b"".join(pieces)
                expected = response.headers.get("Content-Length")
                # read1 does not report a connection that closes early, as read does.
                if expected is not None and len(data) != int(expected):
                    raise TryAgain(f"the reply is cut, {len(data)} of {expected} bytes")
                return reply_from_json(data, self.endpoint.model)
        except urllib.error.HTTPError as error:
            raise self._refusal(error, address) from error
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
            # urllib wraps what happens before the reply in URLError and passes on what happens while it is read.
            reason = getattr(error, "reason", error)
            slow = isinstance(reason, TimeoutError)
            raise TryAgain(
                f"time-out after {self.timeout:g} s" if slow else f"{type(reason).__name__}: {reason}"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError, address: str) -> Exception:
        """What an HTTP status means: try again, or the user's to fix."""
        try:
            said = " ".join(error.read(2000).decode(errors="replace").split())[:300]
        except (OSError, http.client.HTTPException):
            said = ""
        problem = f"the server answered {error.code} {error.reason}" + (f": {said}" if said else "")
        if error.code in _RETRIED_STATUS:
            return TryAgain(problem, _seconds(error.headers.get("Retry-After")))
        fixes = {
            401: f"set {KEY_VARIABLE} to a valid key",
            403: f"set {KEY_VARIABLE} to a key that may use this model",
            404: "check the address (it usually ends in /v1) and the model's name",
        }
        fix = fixes.get(error.code, "correct the setting or the prompt that the server names")
        return DisaError(problem, where=address, fix=fix)


def check_request(text: str | None) -> dict[str, Any]:
    """Further request fields from the command line: a JSON object.

    Raises DisaError where it is none.
    """
    try:
        value = json.loads(text) if text is not None else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        problem = f"expected a JSON object, found {text!r}"
        raise DisaError(problem, where="--request", fix='for example \'{"response_format": {"type": "json_object"}}\'')
    return value


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host and turn the request into a GET."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _pause(asked: float | None, backoff: float, attempt: int) -> float:
    """Seconds before the next try: what the server asked for, else doubling with jitter so that threads spread out."""
    # Random numbers of no result: nothing is sampled with them.
    wait = asked if asked is not None else backoff * 2**attempt * random.uniform(0.5, 1.0)
    return min(wait, _LONGEST_PAUSE) if wait > 0 else 0.0


def _seconds(retry_after: str | None) -> float | None:
    try:
        return float(retry_after) if retry_after is not None else None
    except ValueError:
        return None  # the header's other form is a date


def _pieces(response: http.client.HTTPResponse, deadline: float) -> Iterator[bytes]:
    """Bytes of a reply as they come; a server that drips them must not hold a thread for ever."""
    total = 0
    while piece := response.read1(65536):
        total += len(piece)
        if total > _MAX_REPLY_BYTES:
            raise TryAgain(f"the reply is longer than {_MAX_REPLY_BYTES} bytes")
        yield piece
        if time.monotonic() > deadline:
            raise TimeoutError
