"""verl's configuration for a recipe: what the recipe says, what a frozen log Z requires, and the check of both."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disa.errors import DisaError
from disa.recipe import Recipe

if TYPE_CHECKING:
    from omegaconf import DictConfig

_ACTOR, _MODEL, _ROLLOUT = (f"actor_rollout_ref.{name}" for name in ("actor", "model", "rollout"))
_LAW = "it would change the distribution over completions that log Z was estimated for"
_TERMS = "the residual is made of exactly these terms"
_OFF_POLICY = "on completions of an older policy an error in log Z moves the optimum"

REQUIRED: dict[str, tuple[Any, str]] = {
    "trainer.use_v1": (True, "the plugin is tested with this trainer"),
    "trainer.v1.trainer_mode": ("sync", _OFF_POLICY),
    "algorithm.adv_estimator": ("disa", _TERMS),
    "algorithm.use_kl_in_reward": (True, "log pi_ref enters the residual here"),
    "algorithm.kl_penalty": ("kl", _TERMS),
    "algorithm.kl_ctrl.type": ("fixed", _TERMS),
    "algorithm.kl_ctrl.kl_coef": (1.0, _TERMS),
    "algorithm.filter_groups.enable": (False, "the loss is a mean over the policy's own completions, all of them"),
    "algorithm.rollout_correction.rollout_is": (None, _TERMS),
    "algorithm.rollout_correction.rollout_rs": (None, _TERMS),
    "algorithm.rollout_correction.bypass_mode": (False, _TERMS),
    f"{_ACTOR}.policy_loss.loss_mode": ("disa", _TERMS),
    f"{_ACTOR}.loss_agg_mode": ("seq-mean-token-sum", "log-probabilities of completions are sums over tokens"),
    f"{_ACTOR}.entropy_coeff": (0, _TERMS),
    f"{_ACTOR}.use_kl_loss": (False, _TERMS),
    f"{_ACTOR}.ppo_epochs": (1, _OFF_POLICY),
    f"{_MODEL}.tokenizer_path": (None, "the reference's own tokenizer is the one in the anchor's fingerprint"),
    f"{_MODEL}.custom_chat_template": (None, _LAW),
    f"{_MODEL}.override_config": ({}, _LAW),
    f"{_ROLLOUT}.top_p": (1.0, _LAW),
    f"{_ROLLOUT}.top_k": (-1, _LAW),
    f"{_ROLLOUT}.ignore_eos": (False, _LAW),
    f"{_ROLLOUT}.multi_turn.enable": (False, _LAW),
    "data.apply_chat_template_kwargs": ({}, _LAW),
    "reward.reward_manager.source": ("register", "the reward function below is called by it"),
    "reward.reward_manager.name": ("naive", "the reward function below is called by it"),
    "reward.reward_model.enable": (False, "log Z was estimated for the task's reward"),
    "reward.custom_reward_function.path": ("pkg://disa.verl.reward", "it subtracts log Z"),
    "reward.custom_reward_function.name": ("compute_score", "it subtracts log Z"),
    "critic.enable": (False, _TERMS),
    "distillation.enabled": (False, _TERMS),
}
"""What verl must be set to, and why: set by the launcher, checked after the recipe's own settings."""

_EQUAL = {
    # One optimiser step a batch: a second one would be off-policy.
    f"{_ACTOR}.ppo_mini_batch_size": "data.train_batch_size",
    f"{_ROLLOUT}.response_length": "data.max_response_length",
}

FORWARDED = ("HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE")
"""Environment variables that decide which files a model name stands for: workers on other nodes get them too."""


def compose_config(
    recipe: Recipe, *, reference: str, folder: Path, prompts: int, prompt_length: int, reward: str, anchor: str
) -> DictConfig:
    """Everything verl is told for a recipe, checked against what a frozen log Z requires.

    Parameters
    ----------
    recipe : Recipe
    reference : str
        Folder or hub id.
    folder : Path
        Where data files and checkpoints go; every node must see it under this path.
    prompts, prompt_length : int
        Number of training prompts, and tokens of the longest prompt of all.
    reward, anchor : str
        The anchor's reward fingerprint, and the digest of its file.

    Raises
    ------
    DisaError
        Naming the setting: unknown to verl, refused by it, or in conflict with a frozen log Z.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException

    values = {key: value for key, (value, _) in REQUIRED.items()}
    values |= _from_recipe(recipe, reference, folder, prompts, prompt_length)
    values |= _for_workers(recipe, reward, anchor)
    overrides = [f"{key}={_literal(value)}" for key, value in values.items()]
    overrides += [f"{key}={_literal(value)}" for key, value in _flat(recipe.verl)]
    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides)
    except HydraException as error:
        raise DisaError(
            " ".join(str(error).split()),
            where="recipe, section verl",
            fix="correct the name as verl's ppo_trainer.yaml has it; a new key needs a '+' in front of its first part",
        ) from error
    check_config(config, reference, folder)
    return config


def _from_recipe(recipe: Recipe, reference: str, folder: Path, prompts: int, prompt_length: int) -> dict[str, Any]:
    """What the recipe's own sections mean in verl's names; the section ``verl`` may change these."""
    sampling, training, method = recipe.sampling, recipe.training, "disa"
    steps = training.method_steps(method)
    values: dict[str, Any] = {
        "data.train_files": str(folder / "train.parquet"),
        "data.val_files": str(folder / "validation.parquet"),
        "data.train_batch_size": training.prompts_per_step,
        "data.max_prompt_length": prompt_length,
        "data.max_response_length": sampling.max_completion_length,
        "data.seed": training.seed,
        f"{_MODEL}.path": reference,
        f"{_ROLLOUT}.name": "vllm",
        f"{_ROLLOUT}.n": training.completions_per_prompt,
        f"{_ROLLOUT}.temperature": sampling.temperature,
        f"{_ROLLOUT}.val_kwargs.do_sample": True,
        f"{_ROLLOUT}.val_kwargs.temperature": sampling.temperature,
        f"{_ROLLOUT}.val_kwargs.n": recipe.evaluation.samples_per_prompt,
        f"{_ACTOR}.ppo_mini_batch_size": training.prompts_per_step,
        f"{_ACTOR}.use_dynamic_bsz": True,
        f"{_ACTOR}.optim.lr": training.method_learning_rate(method),
        f"{_ACTOR}.optim.lr_scheduler_type": training.schedule,
        f"{_ACTOR}.optim.lr_warmup_steps": training.warmup_steps,
        f"{_ACTOR}.optim.weight_decay": 0.0,
        f"{_ACTOR}.optim.clip_grad": training.max_grad_norm,
        "trainer.total_training_steps": steps,
        # verl counts epochs as well, and stops at whichever ends first; incomplete batches are dropped.
        "trainer.total_epochs": -(-steps // max(1, prompts // training.prompts_per_step)),
        "trainer.save_freq": training.save_every,
        "trainer.logger": ["console"],
        "trainer.project_name": "disa",
        "trainer.experiment_name": Path(recipe.run_dir).name,
        "trainer.default_local_dir": str(folder / "checkpoints"),
    }
    if training.lora is not None:
        values |= {
            f"{_MODEL}.lora_rank": training.lora.rank,
            f"{_MODEL}.lora_alpha": training.lora.alpha,
            f"{_MODEL}.target_modules": training.lora.target_modules,
        }
    return values


def _for_workers(recipe: Recipe, reward: str, anchor: str) -> dict[str, Any]:
    """What travels to Ray's workers, and is no setting of verl's: hence the ``+``."""
    training = recipe.training
    strength = training.baseline_prior_strength if training.baseline == "anchored" else None
    # A dollar sign would start one of OmegaConf's interpolations.
    task = json.dumps(recipe.tasks.model_dump(mode="json")).replace("$", "\\u0024")
    kwargs = {"task": task, "reward": reward, "anchor": anchor, "inverse_temperature": training.inverse_temperature}
    # Unlike an entry point, whose failure verl only logs for debugging, a module named here must import.
    environment = {"VERL_USE_EXTERNAL_MODULES": "disa.verl.plugin"}
    environment |= {name: os.environ[name] for name in FORWARDED if name in os.environ}
    return {
        "+algorithm.disa.baseline_prior_strength": strength,
        **{f"+reward.custom_reward_function.reward_kwargs.{key}": value for key, value in kwargs.items()},
        **{f"+ray_kwargs.ray_init.runtime_env.env_vars.{key}": value for key, value in environment.items()},
    }


def check_config(config: DictConfig, reference: str, folder: Path) -> None:
    """Refuse a setting that changes what log Z means or what the residual is made of, then ask verl itself.

    Raises
    ------
    DisaError
        Naming the setting, its value, the one it must have, and why.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    required = REQUIRED | {
        f"{_MODEL}.path": (reference, "policy and reference start from the anchor's reference"),
        "data.train_files": (str(folder / "train.parquet"), "its rows carry the anchor's log Z"),
        "data.val_files": (str(folder / "validation.parquet"), "its rows carry the anchor's log Z"),
    }
    required |= {key: (OmegaConf.select(config, other), f"it must equal {other}") for key, other in _EQUAL.items()}
    for key, (wanted, why) in required.items():
        found = OmegaConf.select(config, key)
        if found != wanted:
            problem = f"{key} is {found!r}, expected {wanted!r}: {why}"
            raise DisaError(problem, where="recipe, section verl", fix="remove the setting")
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, ImportError, HydraException) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise DisaError(
            f"verl refuses the configuration: {problem}", where="recipe, section verl", fix="correct the setting"
        ) from error


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _literal(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if isinstance(value, list | tuple):
        return f"[{','.join(_literal(item) for item in value)}]"
    if isinstance(value, str):
        # Backslashes count as escapes only in front of a quote, so only those are doubled.
        return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    return json.dumps(value)
