"""What the policy starts from and what stays behind as the reference, in every form that a policy may come in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import AdaptionPromptConfig, PeftModel, PromptLearningConfig
from peft.tuners.tuners_utils import BaseTuner
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl import GRPOConfig
from trl.trainer.callbacks import SyncRefModelCallback

from disa.errors import DisaError
from disa.lm.digests import base_parameters, weights_digest
from disa.lm.loading import effective_precision, load_model, refuse_adapters, refuse_unloadable

if TYPE_CHECKING:
    from disa.training.balance_trainer import BalanceTrainer

_WHERE = "policy and reference"
_OF_THE_PROMPT = (PromptLearningConfig, AdaptionPromptConfig)
"""Adapters that put tokens of their own before or beside the prompt's."""


def load_policy(model: Any, reference: str | Path | None, peft_config: Any, args: GRPOConfig) -> Any:
    """The policy, loaded where it is given by its folder, in a form whose reference is known.

    It is loaded in float32, but for a base under new adapters (``peft_config``; :func:`disa.lm.loading.load_base`);
    ``args.model_init_kwargs`` may say another ``dtype``. TRL takes the reference from where the policy's configuration
    says it was loaded, or switches new adapters off. Of a policy with adapters of its own it would take a copy of them,
    so there the reference has to be given. Raises DisaError where what is to be the reference is not known, or not what
    was given.
    """
    if isinstance(model, (str, Path)):
        dtype = effective_precision("checkpoint", model) if peft_config is not None and args.bf16 else "float32"
        init = {"dtype": dtype, **(args.model_init_kwargs or {})}
        if "torch_dtype" in init:  # transformers' older name, which would lose to the default of the newer one
            init["dtype"] = init.pop("torch_dtype")
        with refuse_unloadable(model):
            model = AutoModelForCausalLM.from_pretrained(str(model), **init)
    if isinstance(model, PeftModel):
        _check_own_adapters(model, reference, peft_config)
    else:
        refuse_adapters(model.config._name_or_path, model)
    if isinstance(peft_config, _OF_THE_PROMPT):
        raise _virtual_tokens()
    if reference is not None and (peft_config is not None or isinstance(model, PeftModel)):
        found, given = weights_digest(model), weights_digest(load_model(reference, device_map="cpu"))
        if found != given:
            raise DisaError(
                f"with adapters the reference is the base model, whose digest is {found}; reference={reference} has "
                f"{given}",
                where=_WHERE,
                fix="put the adapters on the reference itself, or train without adapters",
            )
    elif reference is not None:
        refuse_adapters(reference)
        # TRL loads the frozen reference from here; without this an edited or in-memory policy would silently be
        # compared with whatever its configuration names.
        model.config._name_or_path = str(reference)
    return model


def _check_own_adapters(model: PeftModel, reference: str | Path | None, peft_config: Any) -> None:
    if not isinstance(model.base_model, BaseTuner):
        raise _virtual_tokens()
    if peft_config is not None:
        problem, fix = (
            "it has adapters, and peft_config asks for new ones",
            "leave peft_config out, or merge them first",
        )
    elif model.active_adapters != ["default"]:
        problem = f"its active adapters are {', '.join(model.active_adapters)}, expected one named default"
        fix = "load it by PeftModel.from_pretrained(base, folder, is_trainable=True)"
    elif not any(p.requires_grad for p in model.parameters()):
        problem = "none of its parameters is trainable: nothing would move"
        fix = "load it by PeftModel.from_pretrained(base, folder, is_trainable=True)"
    elif reference is None:
        problem = "it has adapters of its own, and the reference may be the model with or without them"
        fix = "give reference=, the base model's folder; for a reference with them, merge and save it first"
    else:
        return
    raise DisaError(problem, where=_WHERE, fix=fix)


def _virtual_tokens() -> DisaError:
    problem = (
        "its adapters are tokens in front of the prompt or beside it, which neither sampling nor log pi here would see"
    )
    return DisaError(problem, where=_WHERE, fix="use adapters within layers, such as LoRA")


def hold_reference(trainer: BalanceTrainer) -> None:
    """Put a reference of its own back into its checkpoint's bfloat16, where training computes in it.

    TRL loads it in the policy's float32, which only pads every number with zeros.
    """
    reference = trainer.ref_model
    if reference is not None and trainer.args.bf16 and isinstance(reference, PreTrainedModel):
        reference.to(getattr(torch, effective_precision("checkpoint", reference.config._name_or_path)))


def check_frozen(trainer: BalanceTrainer) -> None:
    """Refuse a reference that training would move.

    Raises DisaError where a weight of the reference is trained, or shared with one that is, or a callback changes it.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.ref_model is None:
        moving = [name for name, parameter in base_parameters(model) if parameter.requires_grad]
    else:
        held = {p.data_ptr() for p in trainer.ref_model.parameters()} - {0}
        moving = [name for name, p in model.named_parameters() if p.requires_grad and p.data_ptr() in held]
    if moving:
        raise DisaError(
            f"{len(moving)} weights of the reference would be trained, {moving[0]} first, expected none",
            where=_WHERE,
            fix="use adapters that leave the base alone (bias='none'), or a policy with weights of its own",
        )
    if any(isinstance(callback, SyncRefModelCallback) for callback in trainer.callback_handler.callbacks):
        problem = "SyncRefModelCallback would change the reference, to which log Z belongs"
        raise DisaError(problem, where=_WHERE, fix="leave it out")
