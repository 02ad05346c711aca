"""What can be checked in the first seconds of a run, so that a recipe that cannot end well costs nothing."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from disa.errors import DisaError
from disa.lm.loading import load_config, load_generation_config, load_tokenizer, require_vllm
from disa.lm.sampling_config import check_context, declared_stop_token_ids, encode_prompt
from disa.recipe import Recipe
from disa.runs.records import Prompt
from disa.tasks import Task
from disa.tasks.checked_rewards import checked_rewards
from disa.warmup.embedded_models import EMBEDDED_MODELS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MOST_PROMPTS = 1000
"""Prompts of each split whose length is looked at: a second's work at most."""


@dataclasses.dataclass(frozen=True)
class PreflightFindings:
    """What a preflight found."""

    facts: list[str]
    """What was checked, a line each."""
    warnings: list[str]
    """What may be meant, and usually is not."""


def preflight(
    recipe: Recipe,
    task: Task,
    prompts: Callable[[], list[Prompt]],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreflightFindings:
    """Check reward, models, tokenizers and prompts of a recipe without loading weights.

    Raises DisaError where something cannot work: the first that is found. ``prompts`` gives those of every split but
    the warm-up's; it is called when everything else has been checked.
    """
    facts, warnings = [f"reward: {task.reward_fingerprint}"], []
    if recipe.proposals.engine == "vllm":
        require_vllm("proposals.engine")
    for name in recipe.training.report_to:
        if find_spec(name) is None:
            problem = f"the package {name} is not installed"
            raise DisaError(problem, where="recipe, field training.report_to", fix=f"pip install {name}")
    if recipe.training.vllm is not None:
        require_vllm("training.vllm")
    if recipe.training.optim is not None:
        _check_optimiser(recipe.training.optim)
    models = _given_models(recipe)
    configs = {role: _checked_config(path) for role, path in models.items()}
    tokenizers = {role: load_tokenizer(path) for role, path in models.items()}
    if tokenizer is not None:
        tokenizers["reference"] = tokenizer
    facts += [f"{role}: {models[role]}, {config.model_type}" for role, config in configs.items()]
    if "proposal" in models:
        _check_alike(models, tokenizers)
        facts.append("tokenizers: the same vocabulary and stop tokens")
    found = prompts()
    by_split = {split: [p for p in found if p.split == split] for split in dict.fromkeys(p.split for p in found)}
    try:
        recipe.training.check_prompts(recipe.training.methods, len(by_split.get("train", ())))
    except ValueError as error:
        problem, _, fix = str(error).rpartition(": ")
        raise DisaError(problem, where="recipe, field training.prompts_per_step", fix=fix) from error
    facts.append("prompts: " + ", ".join(f"{len(rows)} {split}" for split, rows in by_split.items()))
    examples = task.examples(found)
    stops = [[known.eos_token_id] for known in tokenizers.values()][:1]
    rewards = checked_rewards(task, examples, [""] * len(examples), stops * len(examples))
    facts.append("reward of an empty completion: " + ", ".join(map(str, rewards)))
    first = [prompt for rows in by_split.values() for prompt in rows[:MOST_PROMPTS]]
    if models and first:
        tokenizer = next(iter(tokenizers.values()))  # the reference's, by which all stages encode
        facts.append(f"longest of {len(first)} prompts: {_longest(recipe, first, configs, tokenizer)} tokens")
        if tokenizer.chat_template is not None and not recipe.sampling.conversational:
            warnings.append(
                "warning: the tokenizer has a chat template, and prompts go to the model as plain text; an "
                "instruction-tuned model wants sampling.conversational: true"
            )
    return PreflightFindings(facts, warnings)


def _check_optimiser(name: str) -> None:
    from torch import nn
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    where, known = "recipe, field training.optim", [kind.value for kind in OptimizerNames]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise DisaError(
            f"transformers has no optimiser {name!r}", where=where, fix=f"use one of {', '.join(near or known)}"
        )
    try:
        # Some look at the model.
        Trainer.get_optimizer_cls_and_kwargs(TrainingArguments("unused", optim=name), nn.Linear(1, 1))
    except (ImportError, ValueError) as error:
        problem = f"optimiser {name} cannot be made: {str(error).splitlines()[0]}"
        raise DisaError(problem, where=where, fix="install what it names, or use another optimiser") from error


def _given_models(recipe: Recipe) -> dict[str, str]:
    """Models that exist before the run, by their role."""
    if recipe.warmup is None:
        given = {"reference": recipe.models.reference, "proposal": recipe.models.proposal}
        return {role: path for role, path in given.items() if path}
    base = recipe.warmup.base
    return {} if base == "small" or base in EMBEDDED_MODELS else {"warm-up's base": base}


def _checked_config(path: str) -> PretrainedConfig:
    config = load_config(path)
    if config.is_encoder_decoder:
        problem = f"model type {config.model_type} has an encoder, expected a causal language model"
        raise DisaError(problem, where=path, fix="give a decoder-only model")
    return config


def _check_alike(models: dict[str, str], tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """Refuse a proposal whose token ids, or ends of completions, mean something else than the reference's."""
    ours, theirs = tokenizers["reference"].get_vocab(), tokenizers["proposal"].get_vocab()
    where = f"models.proposal {models['proposal']}"
    if ours != theirs:
        differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        example = f"{differing[0]!r} is {theirs.get(differing[0])} and there {ours.get(differing[0])}"
        raise DisaError(
            f"the ids of {len(differing)} tokens are not those of {models['reference']} ({example}), and "
            "a trajectory's ids must mean the same to both",
            where=where,
            fix="use a proposal of the reference's family, or import its trajectories as text (engine: import)",
        )
    stops = {
        role: list(declared_stop_token_ids(load_generation_config(path), tokenizers["reference"]))
        for role, path in models.items()
    }
    if stops["reference"] != stops["proposal"]:
        raise DisaError(
            f"its stop tokens are {stops['proposal']} and those of {models['reference']} {stops['reference']}, and "
            "both must end completions alike",
            where=where,
            fix="give a copy of one of them the other's eos_token_id in generation_config.json",
        )


def _longest(
    recipe: Recipe,
    prompts: list[Prompt],
    configs: dict[str, PretrainedConfig],
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """Number of tokens of the longest prompt, which fits every model's context with a whole completion."""
    encoded = {p.prompt_id: encode_prompt(tokenizer, p.prompt, recipe.sampling) for p in prompts}
    longest = max(encoded, key=lambda prompt_id: len(encoded[prompt_id]))
    for role, config in configs.items():
        check_context(config, encoded[longest], recipe.sampling, where=f"prompt {longest}, {role}")
    return len(encoded[longest])
