"""The enumerable table as a Hugging Face causal language model and tokenizer.

Prompts are the digits ``0`` to ``9``, one token each; completions are letters. Token ids: EOS 0, then the
letters, then the digits, then padding. The head predicts EOS and letters only, so the distribution over
completions is exactly the table's. Hidden states are the table's rows and the head is the identity,
so the table is all there is to train.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from disa.testing.enumerable import EnumerableModel
from disa.testing.space import EOS, Space

PROMPTS = tuple("0123456789")
LETTERS = string.ascii_lowercase
EOS_TOKEN, PAD_TOKEN = "<eos>", "<pad>"


class OracleConfig(PreTrainedConfig):
    """Size of the table: tokens with EOS, tokens of the longest completion, and at most 10 prompts.

    Sample with exactly the length limit: behind it there is no table.
    """

    model_type = "disa_oracle"
    # TRL reads this of every class that transformers itself does not have: no code comes with the folder.
    auto_map: ClassVar[dict[str, str]] = {}

    vocab_size: int = 6
    length_limit: int = 4
    prompts: int = 10
    bos_token_id: int | None = None
    eos_token_id: int | None = EOS
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    # Generation makes a cache of so many layers, which stays empty: prefixes are looked up afresh at each step.
    num_hidden_layers: int = 1

    @property
    def space(self) -> Space:
        """The completions."""
        return Space(self.vocab_size, self.length_limit)


class _OraclePreTrainedModel(PreTrainedModel):
    config_class = OracleConfig
    base_model_prefix = "model"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)
        elif isinstance(module, _Identity):
            # Also called on loading, where buffers that are not saved come up empty.
            nn.init.eye_(module.weight)


class OracleModel(_OraclePreTrainedModel):
    """Token ids to the table's rows: the hidden state of a position holds its next-token logits."""

    def __init__(self, config: OracleConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.prompts * config.space.prefixes, config.vocab_size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> BaseModelOutput:
        """Look up the row of (prompt, letters so far) at every position; padding gets any row."""
        return BaseModelOutput(last_hidden_state=self.table(self.nodes(input_ids)))

    def nodes(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Row number in the table of every position, shape of ``input_ids``.

        Positions before the prompt, behind EOS and at the length limit predict nothing and get row 0.
        """
        space = self.config.space
        offsets = torch.as_tensor(space.offsets, device=input_ids.device)
        rows = input_ids.shape[0]
        # -1 until the prompt's digit, and again once the completion is over.
        prompt = torch.full((rows,), -1, device=input_ids.device)
        count, number = torch.zeros_like(prompt), torch.zeros_like(prompt)
        result = []
        for token in input_ids.unbind(dim=1):
            digit = token - space.vocabulary
            is_prompt = (digit >= 0) & (digit < self.config.prompts)
            prompt = torch.where(is_prompt, digit, torch.where(token == EOS, -1, prompt))
            is_letter = (token > EOS) & (token < space.vocabulary)
            number = torch.where(is_prompt, 0, torch.where(is_letter, number * space.letters + token - 1, number))
            count = torch.where(is_prompt, 0, count + is_letter)
            inside = (prompt >= 0) & (count < space.length_limit)
            node = prompt * space.prefixes + offsets[count.clamp(max=space.length_limit)] + number
            result.append(torch.where(inside, node, 0))
        return torch.stack(result, dim=1)


class _Identity(nn.Linear):
    """A head with the interface of a linear layer and nothing to train."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size, bias=False)
        del self.weight
        self.register_buffer("weight", torch.eye(size), persistent=False)


class OracleForCausalLM(_OraclePreTrainedModel, GenerationMixin):
    """Causal language model whose conditionals are the rows of a table."""

    def __init__(self, config: OracleConfig) -> None:
        super().__init__(config)
        self.model = OracleModel(config)
        self.lm_head = _Identity(config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the head: the identity."""
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutput:
        """Next-token logits of the last ``logits_to_keep`` positions, of all where it is 0."""
        hidden = self.model(input_ids).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(hidden[:, -logits_to_keep:]))

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Whole sequences: there is no cache."""
        return {"input_ids": input_ids, "logits_to_keep": 1}


def register() -> None:
    """Make the Auto classes know the model, so that folders written by ``save_pretrained`` load."""
    AutoConfig.register(OracleConfig.model_type, OracleConfig, exist_ok=True)
    AutoModelForCausalLM.register(OracleConfig, OracleForCausalLM, exist_ok=True)


def to_causal_lm(model: EnumerableModel, dtype: torch.dtype = torch.float32) -> OracleForCausalLM:
    """Copy a table of at most 10 prompts into a Hugging Face model."""
    space = model.space
    config = OracleConfig(vocab_size=space.vocabulary, length_limit=space.length_limit, prompts=len(model.logits))
    result = OracleForCausalLM(config).to(dtype)
    with torch.no_grad():
        result.model.table.weight.copy_(torch.as_tensor(model.logits).flatten(0, 1))
    return result


def from_causal_lm(model: OracleForCausalLM) -> EnumerableModel:
    """Read the table back, in float64."""
    config = model.config
    with torch.no_grad():
        logits = model.lm_head(model.model.table.weight).double().cpu().numpy()
    return EnumerableModel(config.space, logits.reshape(config.prompts, -1, config.vocab_size))


def oracle_tokenizer(space: Space) -> PreTrainedTokenizerFast:
    """Tokenizer of prompts and completions; any other character becomes padding."""
    tokens = [EOS_TOKEN, *LETTERS[: space.letters], *PROMPTS, PAD_TOKEN]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=PAD_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD_TOKEN, eos_token=EOS_TOKEN, clean_up_tokenization_spaces=False
    )


def save_oracle(model: EnumerableModel, folder: str | Path) -> None:
    """Write model and tokenizer as an ordinary Hugging Face folder, and register the classes that load it."""
    register()
    to_causal_lm(model).save_pretrained(folder)
    oracle_tokenizer(model.space).save_pretrained(folder)
