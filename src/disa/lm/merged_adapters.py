"""Adapters merged into the weights while the policy samples: a decoding step then costs what it costs without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from peft.tuners.lora import Linear, LoraLayer
from torch import nn


@contextlib.contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Sample from the merged weights, and put the very same base weights back afterwards.

    Subtracting the update again would leave the base weights rounded a little differently after every step. Kinds of
    adapters whose update is not one matrix a layer stay unmerged.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers or not _mergeable(model, layers):
        yield
        return
    bases = [layer.get_base_layer() for layer in layers]
    own = [base.weight.data for base in bases]
    try:
        for layer, base in zip(layers, bases, strict=True):
            updates = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters if adapter in layer.lora_A]
            base.weight.data = sum(updates, base.weight.data)
        with model.disable_adapter():
            yield
    finally:
        for base, weight in zip(bases, own, strict=True):
            base.weight.data = weight


def _mergeable(model: nn.Module, layers: list[LoraLayer]) -> bool:
    """Whether base weights plus updates are the whole policy."""
    configs = [model.peft_config[adapter] for adapter in model.active_adapters]
    plain = all(not config.modules_to_save and config.bias == "none" for config in configs)
    return plain and all(
        isinstance(layer, Linear)
        and type(layer.get_base_layer()) is nn.Linear
        and not any(layer.use_dora.values())
        and not any(layer.lora_bias.values())
        for layer in layers
    )
