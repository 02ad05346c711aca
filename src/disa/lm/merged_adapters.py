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
    adapters whose update is not one matrix a layer stay unmerged, and so do those over bfloat16 weights: the sum would
    round small updates away.
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


@contextlib.contextmanager
def unmoved_base(model: nn.Module) -> Iterator[None]:
    """Keep the very same base weights while something else merges adapters into them and takes them out again.

    Adding an update and subtracting it again leaves a weight rounded differently: the reference would drift.
    """
    bases = [module.get_base_layer() for module in model.modules() if isinstance(module, LoraLayer)]
    own = [base.weight.data for base in bases]
    for base in bases:
        base.weight.data = base.weight.data.clone()
    try:
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
        and layer.get_base_layer().weight.dtype.itemsize >= 4
        and not any(layer.use_dora.values())
        and not any(layer.lora_bias.values())
        for layer in layers
    )
