"""Where evaluated completions come from: a model in this process, or a served one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from disa.config import StageConfig
from disa.errors import DisaError
from disa.evaluation.generation import GenerationSettings
from disa.lm.openai_client import OpenAIClient
from disa.lm.sampling_config import SamplingConfig
from disa.runs.parts import Advance
from disa.runs.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Completion(NamedTuple):
    """One drawn completion."""

    text: str
    tokens: int | None
    truncated: bool
    log_pi: float | None = None
    log_ref: float | None = None


class Source(Protocol):
    """A model that completions can be drawn from."""

    def draw(self, jobs: Sequence[tuple[Prompt, int]], advance: Advance) -> list[Completion]:
        """One completion of every (prompt, draw index), in order; ``advance`` is told how many were drawn since."""

    def facts(self) -> dict[str, Any]:
        """What is known about the model after drawing, for the record."""


class ServerSettings(StageConfig):
    """How served models are reached; none of it changes what is measured."""

    timeout: float = Field(600.0, gt=0)
    """Seconds one try may take."""
    attempts: int = Field(6, ge=1)
    """Tries of one request."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at once."""
    stream: bool = False
    """Receive completions piece by piece."""


class LocalSource:
    """A model in this process.

    With a ``reference``, every completion has its log-probabilities under both.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: GenerationSettings,
        sampling: SamplingConfig,
        reference: PreTrainedModel | None = None,
    ) -> None:
        self._model, self._tokenizer, self._reference = model, tokenizer, reference
        self._settings, self._sampling = settings, sampling

    def draw(self, jobs: Sequence[tuple[Prompt, int]], advance: Advance) -> list[Completion]:
        """One completion of every (prompt, draw index), from the same uniform numbers for every model."""
        from disa.evaluation.nucleus import pick_in_nucleus
        from disa.lm.log_probs import sequence_log_probs
        from disa.lm.sampler import draw_rows, uniforms
        from disa.lm.sampling_config import check_context, decode_completion, encode_prompt

        settings, encoded, draws = self._settings, {}, []
        for prompt in {p.prompt_id: p for p, _ in jobs}.values():
            encoded[prompt.prompt_id] = encode_prompt(self._tokenizer, prompt.prompt, self._sampling)
            check_context(
                self._model.config, encoded[prompt.prompt_id], self._sampling, where=f"prompt {prompt.prompt_id}"
            )
        how = {"temperature": settings.temperature}
        cut = settings.temperature == 0 or settings.top_p < 1
        pick = {"pick": functools.partial(pick_in_nucleus, top_p=settings.top_p)} if cut else {}
        for start in range(0, len(jobs), settings.batch_size):
            batch = jobs[start : start + settings.batch_size]
            numbers = [uniforms(settings.seed, p.prompt_id, "evaluation", i, settings.max_tokens) for p, i in batch]
            rows = [encoded[p.prompt_id] for p, _ in batch]
            draws += draw_rows(self._model, self._tokenizer, rows, np.stack(numbers), **how, **pick)
            advance(len(batch))
        texts = [decode_completion(self._tokenizer, d.completion_ids) for d in draws]
        log_probs: list[Any] = [[None] * len(draws)] * 2
        if self._reference is not None:
            # Both sides of a log ratio come from the scorer: the sampler's rounding would not cancel.
            rows, ids = [encoded[p.prompt_id] for p, _ in jobs], [d.completion_ids for d in draws]
            models = (self._model, self._reference)
            log_probs = [[float(x) for x in sequence_log_probs(m, rows, ids, **how)] for m in models]
        return [
            Completion(text, len(d.completion_ids), d.truncated, log_pi, log_ref)
            for d, text, log_pi, log_ref in zip(draws, texts, *log_probs, strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """Digests of weights, tokenizer and chat template, and where they came from."""
        from disa.lm.digests import chat_template_digest, tokenizer_digest, weights_digest

        chat = self._sampling.conversational
        return {
            "weights": weights_digest(self._model),
            "tokenizer": tokenizer_digest(self._tokenizer),
            "prompt_format": "chat" if chat else "text",
            "chat_template": chat_template_digest(self._tokenizer, conversational=chat),
            "revision": getattr(self._model.config, "_commit_hash", None),
            "device": str(self._model.device),
        }


class ServedSource:
    """A model behind an OpenAI-compatible endpoint: one request per completion."""

    def __init__(self, client: OpenAIClient, settings: GenerationSettings) -> None:
        self._client, self._settings = client, settings
        self._chat = settings.prompt_format != "text"
        self._models: set[str] = set()

    def draw(self, jobs: Sequence[tuple[Prompt, int]], advance: Advance) -> list[Completion]:
        """One completion of every (prompt, draw index), each with a seed of its own."""
        drawn = []
        for completion in self._client.map(self._one, jobs):
            drawn.append(completion)
            advance(1)
        return drawn

    def _one(self, job: tuple[Prompt, int]) -> Completion:
        prompt, index = job
        s = self._settings
        # What is drawn does not depend on what else is.
        key = hashlib.sha256(f"{s.seed}\0{prompt.prompt_id}\0evaluation\0{index}".encode()).digest()
        options = {"max_tokens": s.max_tokens, "temperature": s.temperature, "top_p": s.top_p}
        options["seed"] = int.from_bytes(key[:4], "big") >> 1  # servers take 31 bits
        options = {name: value for name, value in (options | s.request).items() if value is not None}
        try:
            if self._chat:
                system = [{"role": "system", "content": s.system_prompt}] if s.system_prompt is not None else []
                reply = self._client.chat([*system, {"role": "user", "content": prompt.prompt}], **options)
            else:
                reply = self._client.complete(prompt.prompt, **options)
        except DisaError as error:
            raise DisaError(
                error.problem, where=f"{error.where}, prompt {prompt.prompt_id}, draw {index}", fix=error.fix
            ) from error
        self._models.add(reply.model)
        return Completion(reply.text, reply.completion_tokens, reply.finish_reason == "length")

    def facts(self) -> dict[str, Any]:
        """The names it answered under, and how often it had to be asked again."""
        return {
            "served_as": sorted(self._models),
            "prompt_format": "chat" if self._chat else "text",
            "chat_template": "the server's" if self._chat else "none",
            "retries": self._client.retries,
        }
