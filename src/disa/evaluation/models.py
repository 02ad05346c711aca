"""What ``disa evaluate`` measures: a model folder, a hub id, a PEFT adapter folder, or a served model."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disa.errors import DisaError
from disa.evaluation.generation import GenerationSettings
from disa.evaluation.sources import LocalSource, ServedSource, Source
from disa.lm.openai_client import PREFIX, Endpoint, OpenAIClient
from disa.lm.sampling_config import SamplingConfig
from disa.runs.files import folder_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


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

        Raises DisaError where it is neither an endpoint, nor a folder with a model or an adapter, nor a hub id.
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
            return ServedSource(OpenAIClient(Endpoint.parse(self.where), **client), settings)
        if settings.request:
            problem = "further request fields are for endpoints, this model is local"
            raise DisaError(problem, where=f"model {self.name}", fix="leave --request out, or evaluate it separately")
        model, tokenizer = _load(self, settings.compute)
        has_template = tokenizer.chat_template is not None
        chat = has_template if settings.prompt_format == "auto" else settings.prompt_format == "chat"
        if settings.system_prompt is not None and not chat:
            problem = "a system prompt is given, but the tokenizer has no chat template to put it into"
            raise DisaError(problem, where=self.where, fix="leave it out, or use an instruction-tuned model")
        # Only the prompt's form and the length limit are read from it.
        sampling = SamplingConfig(
            conversational=chat, system_prompt=settings.system_prompt, max_completion_length=settings.max_tokens
        )
        return LocalSource(model, tokenizer, settings, sampling)


def adapter_base(folder: Path) -> ModelSpec:
    """The model a PEFT adapter was trained on; a relative path is looked up from here and from the adapter.

    Raises DisaError where the adapter does not name one.
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


def _load(spec: ModelSpec, compute: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch

    from disa.lm.loading import effective_precision, load_model, load_tokenizer

    if spec.kind != "adapter":
        return load_model(spec.where, compute), load_tokenizer(spec.where)
    from peft import PeftModel

    folder, base = Path(spec.where), adapter_base(Path(spec.where))
    # Merged into the weights, it costs nothing at each token and the digest of the weights covers it; in float32, so
    # that the sum is rounded once, to the precision asked for.
    model = PeftModel.from_pretrained(load_model(base.where, "float32"), spec.where).merge_and_unload()
    model = model.to(getattr(torch, effective_precision(compute, base.where)))
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return model.eval().requires_grad_(False), load_tokenizer(folder if has_tokenizer else base.where)


def _as_name(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.rsplit("/", 1)[-1]).strip("-.") or "model"
