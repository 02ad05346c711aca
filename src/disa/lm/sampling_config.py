"""The sampling law: what, besides the weights, defines the distribution over completions.

One model has many distributions over texts: they differ in temperature, length limit, stop tokens
and in how a prompt becomes token ids. Proposals, scoring, training and evaluation must mean the
same one, so all of them take it from here, and the anchor stores it in its fingerprint.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from disa.config import StageConfig
from disa.errors import DisaError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class SamplingConfig(StageConfig):
    """Settings of the sampling law, shared by every stage that draws or scores completions."""

    temperature: float = Field(1.0, gt=0)
    """Divides the logits, in sampling and in every log-probability."""
    max_completion_length: int = Field(24, ge=1)
    """Length limit in tokens; a completion cut there is kept and marked as truncated. With ``models`` given 1024."""
    conversational: bool = False
    """Send prompts through the chat template (one user message) instead of as plain text."""
    system_prompt: str | None = None
    """System message in front of the user message; needs ``conversational``."""
    messages: bool = False
    """Prompts are JSON: messages, or objects of ``messages`` and ``tools``. They go through the chat template as they
    are; needs ``conversational``."""
    chat_template_kwargs: dict[str, Any] = {}
    """Further arguments of the chat template, such as ``enable_thinking``; needs ``conversational``."""
    top_p: float = 1.0
    """Must stay 1: nucleus sampling removes support, and no weight can put it back."""
    top_k: int = 0
    """Must stay 0, for the same reason."""

    @model_validator(mode="after")
    def _keep_support(self) -> SamplingConfig:
        for name, neutral in (("top_p", 1.0), ("top_k", 0)):
            if getattr(self, name) != neutral:
                raise ValueError(
                    f"{name}={getattr(self, name)} removes support from the proposal, so log Z cannot be estimated "
                    f"from its draws; allowed: {name}={neutral}. Use temperature instead"
                )
        for name in ("system_prompt", "messages", "chat_template_kwargs"):
            if getattr(self, name) not in (None, False, {}) and not self.conversational:
                raise ValueError(f"{name} needs conversational: true")
        if self.messages and self.system_prompt is not None:
            raise ValueError("system_prompt is for prompts of text; with messages: true it is a message of its own")
        return self

    def trainer_prompt(self, text: str) -> Any:
        """A prompt in the form that TRL's datasets use: a string, or a list of messages; with tools of its own both."""
        if not self.conversational:
            return text
        if self.messages:
            return json.loads(text)
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt is not None else []
        return [*system, {"role": "user", "content": text}]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, sampling: SamplingConfig) -> list[int]:
    """Token ids of a prompt, exactly as TRL's trainers tokenize the same row.

    Raises DisaError where a character has no token, or a chat template is asked for and the tokenizer has none.
    """
    if sampling.conversational:
        if tokenizer.chat_template is None:
            raise DisaError(
                "sampling.conversational is true but the tokenizer has no chat template",
                where=str(tokenizer.name_or_path),
                fix="set sampling.conversational: false, or use an instruction-tuned model",
            )
        prompt = sampling.trainer_prompt(text)
        own = {"tools": prompt["tools"]} if isinstance(prompt, dict) else {}
        return tokenizer.apply_chat_template(
            prompt["messages"] if own else prompt,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **own | sampling.chat_template_kwargs,
        )["input_ids"]
    ids = tokenizer(text)["input_ids"]
    # Where padding is the end token, as a fallback, a prompt may well hold it, as chat templates written out do.
    unknown = {tokenizer.unk_token_id, tokenizer.pad_token_id} - {None, tokenizer.eos_token_id}
    if unknown & set(ids):
        raise DisaError(
            f"prompt {text!r} has a character the tokenizer does not know",
            where=str(tokenizer.name_or_path),
            fix="use a model whose tokenizer covers the task's alphabet",
        )
    return ids


def decode_completion(tokenizer: PreTrainedTokenizerBase, completion_ids: list[int]) -> str:
    """Text of a completion as rewards see it, special tokens removed (as TRL's trainers do)."""
    return tokenizer.decode(completion_ids, skip_special_tokens=True)


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends a completion: the tokenizer's EOS and those the model declares, sorted."""
    return declared_stop_token_ids(model.generation_config, tokenizer)


def declared_stop_token_ids(generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """:func:`stop_token_ids` of a model of which only the generation configuration is loaded."""
    declared: Any = generation.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return tuple(sorted({tokenizer.eos_token_id, *declared}))


def check_context(config: PretrainedConfig, prompt_ids: list[int], sampling: SamplingConfig, *, where: str) -> None:
    """Refuse a prompt that a full-length completion would take beyond the context that a model's configuration says."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and len(prompt_ids) + sampling.max_completion_length > context:
        raise DisaError(
            f"prompt of {len(prompt_ids)} tokens plus sampling.max_completion_length {sampling.max_completion_length} "
            f"exceeds the model's context of {context}",
            where=where,
            fix="shorten the prompt, lower max_completion_length, or use a model with a longer context",
        )
