"""Draw from a server of the OpenAI protocol that reports log-probabilities: vLLM, SGLang, llama.cpp and their like.

They differ in what they draw from by default and in how they report tokens. Every setting that changes the
distribution is sent, and where the server repeats what it used, as llama.cpp does, that is checked. Tokens are
taken as ids in whichever form they come; where only text comes it is tokenised again, and the trajectory marked.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.errors import DisaError
from disa.lm.openai_client import Endpoint, OpenAIClient
from disa.lm.openai_replies import Reply
from disa.lm.sampler import Draw
from disa.lm.sampling_config import SamplingConfig
from disa.proposals.config import OpenAIConfig
from disa.proposals.imported import text_ids
from disa.proposals.protocol import NEUTRAL, Job, finished_draw

_LLAMA_CPP = {
    "repeat_penalty": 1.0,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "ignore_eos": False,
}
"""llama.cpp's further ways to change a distribution, switched off."""

_EVERY_TOKEN = 2**30
"""top_k that keeps every token. 0 means the same to vLLM and llama.cpp and is an error to SGLang, -1 the same to vLLM
and SGLang and an error to llama-cpp-python."""


class OpenAIEngine:
    """One model behind ``/completions``.

    The endpoint is ``openai:URL#MODEL``, the tokenizer the reference's.
    """

    def __init__(
        self, endpoint: str, sampling: SamplingConfig, stops: Sequence[int], tokenizer: Tokenizer, config: OpenAIConfig
    ) -> None:
        self._client = OpenAIClient(Endpoint.parse(endpoint), timeout=config.timeout, concurrency=config.concurrency)
        self._sampling, self._stops, self._tokenizer, self._config = sampling, tuple(stops), tokenizer, config

    def draw(self, jobs: Sequence[Job]) -> list[Draw]:
        """One request per job, several at once.

        Raises DisaError where the server cannot be reached, refuses a request, drew from another distribution than it
        was asked to, or reports no log-probabilities.
        """
        return list(self._client.map(self._draw, jobs))

    def close(self) -> None:
        """Nothing is held between draws."""

    def _draw(self, job: Job) -> Draw:
        reply = self._client.complete(self._prompt(job.prompt_ids), **self._request(job.seed))
        where = f"{self._client.endpoint.url}, prompt {job.prompt_id}, draw {job.draw}"
        check_settings(reply, self._sampling, where=where)
        limit = self._sampling.max_completion_length
        if (tokens := reported_tokens(reply)) is not None:
            return finished_draw(*tokens, self._stops, limit, where=where)
        truncated = reply.finish_reason == "length"
        if (tokens := self._pieces(reply)) is None:
            # Its own tokens need not be those that were drawn, and may be more: then it is cut at the limit as well.
            ids = text_ids(self._tokenizer, reply.text, self._sampling, truncated=truncated, where=where)
            return Draw(ids[:limit], truncated or len(ids) > limit, None, retokenised=True)
        ids, log_probs = tokens
        if truncated:
            return finished_draw(ids, log_probs, self._stops, limit, where=where)
        # The stop token has no text, and such a server leaves it and its log-probability out.
        return Draw([*ids, self._tokenizer.eos_token_id], False, None, retokenised=len(self._stops) > 1)

    def _pieces(self, reply: Reply) -> tuple[list[int], list[float]] | None:
        """Tokens that are reported as text, where each is the text of exactly one token and they add up to the whole.

        A token that is part of a character may be reported as something else, or as nothing.
        """
        found = reply.logprobs if isinstance(reply.logprobs, dict) else {}
        if (texts := found.get("tokens")) is None:
            return None
        ids = [self._ids[text] for text in texts if text in self._ids]
        known = len(ids) == len(texts) and self._tokenizer.decode(ids, skip_special_tokens=False) == reply.text
        return (ids, found["token_logprobs"]) if known else None

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        """Ids of the tokens, by their text, without texts that several tokens have, such as parts of a character."""
        texts = [self._tokenizer.decode([token]) for token in range(len(self._tokenizer))]
        counts = collections.Counter(texts)
        return {text: token for token, text in enumerate(texts) if counts[text] == 1}

    def _prompt(self, ids: Sequence[int]) -> Sequence[int] | str:
        if self._config.prompts == "tokens":
            return list(ids)
        # A server that takes text puts the first token in front by itself.
        ids = ids[1:] if ids[0] == self._tokenizer.bos_token_id else ids
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _request(self, seed: int) -> dict[str, Any]:
        sampling = self._sampling
        return {
            **NEUTRAL,
            **_LLAMA_CPP,
            "temperature": sampling.temperature,
            "top_k": _EVERY_TOKEN,
            "samplers": ["temperature"],
            "max_tokens": sampling.max_completion_length,
            "seed": seed,
            "stop_token_ids": list(self._stops),
            "logprobs": 1,
            "return_token_ids": True,  # vLLM and SGLang
            "no_stop_trim": True,  # SGLang then keeps the stop token
            "return_tokens_as_token_ids": True,  # older vLLM
            "post_sampling_probs": sampling.temperature != 1.0,  # llama.cpp: probabilities after the temperature
            "verbose": True,  # llama.cpp then says which settings it used
        }


_RESTART = "start the server without options that overrule a request's sampling settings"


def reported_tokens(reply: Reply) -> tuple[list[int], list[float]] | None:
    """Token ids and log-probabilities of a reply, None where it holds no ids.

    - vLLM, SGLang: ``token_ids`` beside ``logprobs.token_logprobs``;
    - vLLM: ``logprobs.tokens`` of the form ``token_id:17``;
    - llama.cpp: ``logprobs.content``, each with ``id`` and ``logprob``, or ``prob`` after sampling.
    """
    choice, found = (reply.whole or {})["choices"][0], reply.logprobs
    if not isinstance(found, dict):
        return None
    if content := found.get("content"):
        log_probs = [token["logprob"] if "logprob" in token else _log(token["prob"]) for token in content]
        return ([token["id"] for token in content], log_probs) if "id" in content[0] else None
    ids, tokens = choice.get("token_ids"), found.get("tokens") or []
    if ids is None and tokens and all(str(token).startswith("token_id:") for token in tokens):
        ids = [int(token.removeprefix("token_id:")) for token in tokens]
    return None if ids is None else (ids, found["token_logprobs"])


def check_settings(reply: Reply, sampling: SamplingConfig, *, where: str) -> None:
    """Refuse a completion whose server says that it used other settings than it was sent."""
    used = ((reply.whole or {}).get("__verbose") or {}).get("generation_settings") or {}
    for name, sent in ({"temperature": sampling.temperature} | NEUTRAL | _LLAMA_CPP).items():
        # The server keeps them in float32.
        if name in used and not math.isclose(used[name], sent, rel_tol=1e-6):
            raise DisaError(
                f"the server used {name} {used[name]:g}, it was sent {sent:g}",
                where=where,
                fix=_RESTART,
            )
    if 0 < used.get("top_k", 0) < _EVERY_TOKEN:
        raise DisaError(f"the server used top_k {used['top_k']}, it was sent {_EVERY_TOKEN}", where=where, fix=_RESTART)


def _log(probability: float) -> float:
    # A token that was drawn has a probability, however small; llama.cpp's float32 may not hold it.
    return math.log(probability) if probability > 0 else math.log(2.0**-149)
