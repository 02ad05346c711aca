"""The numbers of a decoder that its cost follows from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Sizes of one causal language model."""

    parameters: int
    """All of them, tied ones once."""
    embedding: int
    """Those of the input embedding, which is a look-up; 0 where it is tied, because the head multiplies by it."""
    layers: int
    hidden: int
    kv_width: int
    """Key (or value) numbers per token and layer: heads times their width."""
    vocabulary: int
    precision: str = "float32"
    """Of the checkpoint's weights: ``float32`` or ``bfloat16``."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Shape of a loaded model."""
        from disa.lm.loading import effective_precision

        config = model.config.get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            embedding=0 if tied else model.get_input_embeddings().weight.numel(),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            kv_width=(getattr(config, "num_key_value_heads", None) or heads) * width,
            vocabulary=config.vocab_size,
            precision=effective_precision("checkpoint", model),
        )

    def forward_flops(self, tokens: float, context: float) -> float:
        """``tokens (2 N + 2 layers context hidden)``: a multiply and an add per weight, and causal attention.

        Kaplan et al. 2020 (arXiv 2001.08361, section 2.1), with the head's weights in N because small models spend
        much of their time there. A backward pass counts twice a forward pass.
        """
        weights = self.parameters - self.embedding
        return tokens * (2.0 * weights + 2.0 * self.layers * context * self.hidden)
