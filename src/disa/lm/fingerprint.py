"""The one place that takes the fingerprint of the conditions under which a log Z holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from disa.lm.digests import chat_template_digest, tokenizer_digest, weights_digest
from disa.lm.sampling_config import SamplingConfig, stop_token_ids
from disa.runs.provenance import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def take_fingerprint(
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: SamplingConfig,
    *,
    reward: str,
    inverse_temperature: float,
    task: str,
    stops: Iterable[int] | None = None,
    tools: str = "none",
) -> Fingerprint:
    """Fingerprint of everything log Z depends on: calibration stores it, every trainer compares its own with it.

    Adapters of the reference do not count; ``sampling`` is as the caller will draw and score; ``reward``, ``task`` and
    ``tools`` are identities. ``stops`` are the tokens that end a completion, where the caller stops at others than
    those the reference and tokenizer declare.
    """
    return Fingerprint(
        reference=weights_digest(reference),
        tokenizer=tokenizer_digest(tokenizer),
        chat_template=chat_template_digest(
            tokenizer,
            conversational=sampling.conversational,
            system_prompt=sampling.system_prompt,
            arguments=sampling.chat_template_kwargs,
        ),
        temperature=sampling.temperature,
        max_completion_length=sampling.max_completion_length,
        stop_token_ids=stop_token_ids(reference, tokenizer) if stops is None else tuple(sorted(stops)),
        reward=reward,
        inverse_temperature=inverse_temperature,
        task=task,
        tools=tools,
    )
