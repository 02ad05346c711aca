"""What ``disa evaluate`` measures: a model folder, a hub id, a PEFT adapter folder, or a served model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from disa.errors import DisaError
from disa.evaluation.generation import GenerationSettings
from disa.lm.openai_client import PREFIX, Endpoint, OpenAIClient
from disa.runs.files import folder_digest
from disa.runs.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class Completion(NamedTuple):
    """One drawn completion."""

    text: str
    tokens: int | None
    truncated: bool


class Source(Protocol):
    """A model that completions can be drawn from."""

    def draw(self, jobs: Sequence[tuple[Prompt, int]]) -> list[Completion]:
        """One completion of every (prompt, draw index), in order."""

    def facts(self) -> dict[str, Any]:
        """What is known about the model after drawing, for the record."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model as named on the command line."""

    name: str
    """Its name in every table and row."""
    kind: str
    """``endpoint``, ``adapter``, ``folder`` or ``hub``."""
    where: str

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read ``[NAME=]MODEL``; without a name it is called by the last part of its path or address.

        Raises
        ------
        DisaError
            Where it is neither an endpoint, nor a folder with a model or an adapter, nor a hub id.
        """
        named = re.fullmatch(rf"({_NAME})=(.+)", text)
        where = named[2] if named else text
        if where.startswith(PREFIX):
            endpoint = Endpoint.parse(where)
            return cls(named[1] if named else _as_name(endpoint.model), "endpoint", where)
        folder = Path(where)
        name = named[1] if named else _as_name(folder.resolve().name if folder.exists() else where)
        if folder.is_dir():
            for file, kind in (("adapter_config.json", "adapter"), ("config.json", "folder")):
                if (folder / file).is_file():
                    return cls(name, kind, where)
            problem, fix = "a folder without config.json or adapter_config.json", "give the folder of one model"
        elif re.fullmatch(rf"({_NAME}/)?{_NAME}", where) and not folder.exists():
            return cls(name, "hub", where)
        else:
            problem = "neither a folder, nor a hub id, nor openai:http://HOST:PORT/v1#MODEL"
            fix = "correct the path"
        raise DisaError(problem, where=f"model '{text}'", fix=fix)

    def identity(self) -> dict[str, Any]:
        """What the model is, for fingerprints: a folder by its files, others by name."""
        if self.kind == "endpoint":
            endpoint = Endpoint.parse(self.where)
            return {"endpoint": endpoint.url, "model": endpoint.model}
        if self.kind == "hub":
            return {"hub": self.where}
        files = {"files": folder_digest(Path(self.where))}
        return files if self.kind == "folder" else files | {"base": adapter_base(Path(self.where)).identity()}

    def open(self, settings: GenerationSettings, client: dict[str, Any]) -> Source:
        """Load it, or make the client (with these keyword arguments) that reaches it."""
        if self.kind == "endpoint":
            return _Served(OpenAIClient(Endpoint.parse(self.where), **client), settings)
        return _Local(self, settings)


class _Local:
    def __init__(self, spec: ModelSpec, settings: GenerationSettings) -> None:
        from disa.lm.sampling import SamplingConfig

        if settings.request:
            problem = "further request fields are for endpoints, this model is local"
            raise DisaError(problem, where=f"model {spec.name}", fix="leave --request out, or evaluate it separately")
        self._settings = settings
        self._model, self._tokenizer = _load(spec)
        chat = settings.prompt_format == "chat"
        if settings.prompt_format == "auto":
            chat = self._tokenizer.chat_template is not None
        if settings.system_prompt is not None and not chat:
            problem = "a system prompt is given, but the tokenizer has no chat template to put it into"
            raise DisaError(problem, where=spec.where, fix="leave it out, or use an instruction-tuned model")
        # Only the prompt's form and the length limit are read from this law: encode_prompt and check_context need it.
        self._law = SamplingConfig(
            conversational=chat, system_prompt=settings.system_prompt, max_completion_length=settings.max_tokens
        )

    def draw(self, jobs: Sequence[tuple[Prompt, int]]) -> list[Completion]:
        import numpy as np

        from disa.evaluation.nucleus import draw
        from disa.lm.sampler import uniforms
        from disa.lm.sampling import check_context, decode_completion, encode_prompt

        settings, encoded = self._settings, {}
        for prompt in {p.prompt_id: p for p, _ in jobs}.values():
            encoded[prompt.prompt_id] = encode_prompt(self._tokenizer, prompt.prompt, self._law)
            check_context(self._model.config, encoded[prompt.prompt_id], self._law, where=f"prompt {prompt.prompt_id}")
        result = []
        for start in range(0, len(jobs), settings.batch_size):
            batch = jobs[start : start + settings.batch_size]
            # The same uniform numbers for every model, as in the evaluation stage of a run.
            numbers = np.stack(
                [uniforms(settings.seed, p.prompt_id, "evaluation", i, settings.max_tokens) for p, i in batch]
            )
            prompt_ids = [encoded[p.prompt_id] for p, _ in batch]
            for ids, truncated in draw(self._model, self._tokenizer, prompt_ids, numbers, settings):
                result.append(Completion(decode_completion(self._tokenizer, ids), len(ids), truncated))
        return result

    def facts(self) -> dict[str, Any]:
        from disa.runs.provenance import chat_template_digest, tokenizer_digest, weights_digest

        return {
            "weights": weights_digest(self._model),
            "tokenizer": tokenizer_digest(self._tokenizer),
            "prompt_format": "chat" if self._law.conversational else "text",
            "chat_template": chat_template_digest(self._tokenizer, conversational=self._law.conversational),
            "revision": getattr(self._model.config, "_commit_hash", None),
            "device": str(self._model.device),
        }


class _Served:
    def __init__(self, client: OpenAIClient, settings: GenerationSettings) -> None:
        self._client, self._settings = client, settings
        self._chat = settings.prompt_format != "text"
        self._models: set[str] = set()

    def draw(self, jobs: Sequence[tuple[Prompt, int]]) -> list[Completion]:
        return list(self._client.map(self._one, jobs))

    def _one(self, job: tuple[Prompt, int]) -> Completion:
        prompt, index = job
        s = self._settings
        # One request a completion, each with a seed of its own: what is drawn does not depend on what else is.
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
        return {
            "served_as": sorted(self._models),
            "prompt_format": "chat" if self._chat else "text",
            "chat_template": "the server's" if self._chat else "none",
            "retries": self._client.retries,
        }


def adapter_base(folder: Path) -> ModelSpec:
    """The model a PEFT adapter was trained on; a relative path is looked up from here and from the adapter.

    Raises
    ------
    DisaError
        Where the adapter does not name one.
    """
    path = folder / "adapter_config.json"
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DisaError(f"names no base model ({error})", where=str(path), fix="save the adapter again") from error
    if not base:
        raise DisaError("base_model_name_or_path is empty", where=str(path), fix="enter the base model's folder or id")
    beside = folder / base
    return ModelSpec.parse(str(beside if not Path(base).exists() and beside.is_dir() else base))


def _load(spec: ModelSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from disa.lm.loading import load_model, load_tokenizer

    if spec.kind != "adapter":
        return load_model(spec.where), load_tokenizer(spec.where)
    from peft import PeftModel

    folder, base = Path(spec.where), adapter_base(Path(spec.where))
    # Merged into the weights, it costs nothing at each token and the digest of the weights covers it.
    model = PeftModel.from_pretrained(load_model(base.where), spec.where).merge_and_unload()
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return model.eval().requires_grad_(False), load_tokenizer(folder if has_tokenizer else base.where)


def _as_name(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.rsplit("/", 1)[-1]).strip("-.") or "model"
