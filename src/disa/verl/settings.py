"""verl's configuration for a recipe: what the recipe says, what a frozen log Z requires, and the check of both."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disa.errors import DisaError
from disa.recipe import Recipe
from disa.runs.provenance import digest

if TYPE_CHECKING:
    from omegaconf import DictConfig

_ARR = "actor_rollout_ref"
_ACTOR, _REF, _MODEL, _ROLLOUT = (f"{_ARR}.{name}" for name in ("actor", "ref", "model", "rollout"))
_LAW = "it would change the distribution over completions that log Z was estimated for"
_TERMS = "the residual is made of exactly these terms"
_OFF_POLICY = "on completions of an older policy an error in log Z moves the optimum"
_UNKNOWN = "it may change the sampling law or the objective, and is not among the settings known to leave both alone"

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
"""What verl must be set to, and why: set by the launcher, and not to be changed by the recipe."""

# How the entropy that is logged is computed; entropy_coeff would be a term of the loss.
_ENTROPY = ("entropy_from_logits_*", "entropy_checkpointing")
_OF_FSDP = (
    *("param_offload", "optimizer_offload", "offload_policy", "reshard_after_forward", "fsdp_size", "wrap_policy.*"),
    *("forward_prefetch", "use_orig_params", "seed", "full_determinism", "ulysses_sequence_parallel_size"),
    *(*_ENTROPY, "use_torch_compile", "use_no_sync_for_gradient_accumulation", "pad_to_length*"),
)
FREE = (
    *("trainer.nnodes", "trainer.n_gpus_per_node", "trainer.device", "trainer.balance_batch", "trainer.save_freq"),
    *("trainer.test_freq", "trainer.val_before_train", "trainer.log_val_generations", "trainer.logger"),
    *("trainer.project_name", "trainer.experiment_name", "trainer.*_data_dir", "trainer.max_*_ckpt_to_keep"),
    *("trainer.esi_redundant_time", "trainer.ray_wait_register_center_timeout", "trainer.resume_mode"),
    *("ray_kwargs.*", "global_profiler.*", "transfer_queue.*", "*.profiler.*", f"{_ARR}.nccl_timeout"),
    *("data.dataloader_num_workers", "data.val_batch_size", "data.max_prompt_length", "reward.num_workers"),
    *(f"{part}.{key}" for part in (_ACTOR, _REF) for key in ("strategy", "use_torch_compile", "ulysses_*", *_ENTROPY)),
    *(f"{part}.fsdp_config.{key}" for part in (_ACTOR, _REF) for key in (*_OF_FSDP, "strategy")),
    *(f"{_ACTOR}.{key}" for key in ("ppo_max_token_len_per_gpu", "ppo_micro_batch_size*", "use_dynamic_bsz")),
    *(f"{_ACTOR}.checkpoint.*", f"{_REF}.log_prob_*", f"{_ROLLOUT}.log_prob_*", f"{_ROLLOUT}.name"),
    *(f"{_ROLLOUT}.*_parallel_size", f"{_ROLLOUT}.gpu_memory_utilization", f"{_ROLLOUT}.enforce_eager"),
    *(f"{_ROLLOUT}.free_cache_engine", f"{_ROLLOUT}.max_num_*", f"{_ROLLOUT}.max_model_len"),
    *(f"{_ROLLOUT}.enable_chunked_prefill", f"{_ROLLOUT}.enable_prefix_caching", f"{_ROLLOUT}.cudagraph_capture_sizes"),
    *(f"{_ROLLOUT}.load_format", f"{_ROLLOUT}.layered_summon", f"{_ROLLOUT}.disable_log_stats", f"{_ROLLOUT}.seed"),
    *(f"{_ROLLOUT}.scheduling_policy", f"{_ROLLOUT}.multi_stage_wake_up", f"{_ROLLOUT}.full_determinism"),
    *(f"{_ROLLOUT}.agent.num_workers", f"{_ROLLOUT}.prometheus.*", f"{_ROLLOUT}.trace.*", f"{_ROLLOUT}.val_kwargs.*"),
    *(f"{_ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes", f"{_MODEL}.override_config.attn_implementation"),
    *(f"{_MODEL}.{key}" for key in ("use_remove_padding", "enable_*", "use_shm", "use_liger", "use_fused_kernels")),
    f"{_MODEL}.fused_kernel_options.*",
)
"""Settings a recipe may change at will: where the work is done, how fast, and what is logged."""

TRAINING = (
    *("data.train_batch_size", "data.seed", "data.shuffle", "data.max_response_length", "trainer.total_*"),
    *(f"{_ACTOR}.optim.*", f"{_ACTOR}.ppo_mini_batch_size", f"{_ACTOR}.data_loader_seed"),
    *(f"{part}.fsdp_config.{key}" for part in (_ACTOR, _REF) for key in ("mixed_precision.*", "model_dtype")),
    *(f"{_ROLLOUT}.n", f"{_ROLLOUT}.temperature", f"{_ROLLOUT}.response_length", f"{_ROLLOUT}.dtype"),
    *(f"{_MODEL}.lora_rank", f"{_MODEL}.lora_alpha", f"{_MODEL}.target_modules", f"{_MODEL}.exclude_modules"),
)
"""Settings a recipe may change that make another training: its checkpoints are its own."""

_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
_EQUAL = {
    # One optimiser step per batch: a second one would be off-policy.
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
    from omegaconf import OmegaConf

    values = {key: value for key, (value, _) in REQUIRED.items()}
    values |= _from_recipe(recipe, reference, folder, prompts, prompt_length)
    values |= _for_workers(recipe, folder, reward, anchor)
    own = [f"{key}={_literal(value)}" for key, value in values.items()]
    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            base = compose("ppo_trainer", own)
            config = compose("ppo_trainer", own + [f"{key}={_literal(value)}" for key, value in _flat(recipe.verl)])
    except HydraException as error:
        raise DisaError(
            " ".join(str(error).split()),
            where="recipe, section verl",
            fix="correct the name as verl's ppo_trainer.yaml has it; a new key needs a '+' in front of its first part",
        ) from error
    check_config(config, base, prompt_length)
    OmegaConf.update(config, "trainer.default_local_dir", str(folder / "checkpoints" / _training_digest(config)))
    return config


def _training_digest(config: DictConfig) -> str:
    """Digest of what the checkpoints of a training depend on: anchor, reference, objective, optimiser."""
    from omegaconf import OmegaConf

    values = _flat(OmegaConf.to_container(config, resolve=True))
    return digest({key: value for key, value in values if not _matches(key, (*FREE, "data.*_files"))})


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _from_recipe(recipe: Recipe, reference: str, folder: Path, prompts: int, prompt_length: int) -> dict[str, Any]:
    """What the recipe's own sections mean in verl's names; the section ``verl`` may change these."""
    sampling, training, method = recipe.sampling, recipe.training, "disa"
    from disa.lm.loading import stated_precision

    steps = training.method_steps(method)
    if training.method_uses(method) > 1 or training.replay_share:
        raise DisaError(
            "verl's advantages belong to fresh completions: expected every completion in one optimiser step",
            where="recipe, fields training.steps_per_completion and replay_share",
            fix="use 1 and 0 with verl",
        )
    dtype = stated_precision(training.compute, reference)
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
        # Of an FSDP configuration verl reads no other key for this; without it, it computes in bfloat16.
        **{f"+{part}.fsdp_config.mixed_precision.param_dtype": dtype for part in (_ACTOR, _REF)},
        f"{_ROLLOUT}.dtype": dtype,
        # verl's own choice is flash attention, which its extras do not install.
        f"+{_MODEL}.override_config.attn_implementation": "flash_attention_2" if find_spec("flash_attn") else "sdpa",
        "trainer.total_training_steps": steps,
        # verl counts epochs as well, and stops at whichever ends first; incomplete batches are dropped.
        "trainer.total_epochs": -(-steps // max(1, prompts // training.prompts_per_step)),
        "trainer.save_freq": training.save_every,
        "trainer.logger": ["console"],
        "trainer.project_name": "disa",
        "trainer.experiment_name": Path(recipe.run_dir).name,
    }
    if training.lora is not None:
        values |= {
            f"{_MODEL}.lora_rank": training.lora.rank,
            f"{_MODEL}.lora_alpha": training.lora.alpha,
            f"{_MODEL}.target_modules": training.lora.target_modules,
        }
    return values


def _for_workers(recipe: Recipe, folder: Path, reward: str, anchor: str) -> dict[str, Any]:
    """What travels to Ray's workers, and is no setting of verl's: hence the ``+``."""
    training = recipe.training
    strength = training.baseline_prior_strength if training.baseline == "anchored" else None
    # A dollar sign would start one of OmegaConf's interpolations.
    task = json.dumps(recipe.tasks.model_dump(mode="json")).replace("$", "\\u0024")
    kwargs = {"task": task, "reward": reward, "anchor": anchor, "inverse_temperature": training.inverse_temperature}
    kwargs["refusals"] = str(folder / "refusals")
    # Unlike an entry point, whose failure verl only logs for debugging, a module named here must import.
    modules = os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",")
    environment = {"VERL_USE_EXTERNAL_MODULES": ",".join(dict.fromkeys(filter(None, [*modules, "disa.verl.plugin"])))}
    environment |= {name: os.environ[name] for name in FORWARDED if name in os.environ}
    return {
        "+algorithm.disa.baseline_prior_strength": strength,
        "+algorithm.disa.prompts": "${data.train_batch_size}",
        "+algorithm.disa.completions_per_prompt": f"${{{_ROLLOUT}.n}}",
        **{f"+reward.custom_reward_function.reward_kwargs.{key}": value for key, value in kwargs.items()},
        **{f"+ray_kwargs.ray_init.runtime_env.env_vars.{key}": value for key, value in environment.items()},
    }


def check_config(config: DictConfig, base: DictConfig, longest_prompt: int) -> None:
    """Refuse what may change the sampling law or the objective, then ask verl itself.

    Parameters
    ----------
    config, base : DictConfig
        With the recipe's section ``verl``, and without it. They may differ in ``FREE`` and ``TRAINING`` alone, so that
        a setting which nobody looked at, or which another release of verl brings, is refused.
    longest_prompt : int
        Tokens.

    Raises
    ------
    DisaError
        Naming the setting, its value, the one it must have, and why.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    # Unresolved, so that what follows from another setting does not count as set; an empty section is none.
    pairs = [_flat(OmegaConf.to_container(c, resolve=False)) for c in (config, base)]
    found, wanted = ({key: value for key, value in values if value != {}} for values in pairs)
    for key in sorted(found.keys() | wanted.keys()):
        value, own = found.get(key, "unset"), wanted.get(key, "unset")
        if value != own and not _matches(key, (*FREE, *TRAINING)):
            raise _refused(key, value, repr(own), REQUIRED.get(key, (None, _UNKNOWN))[1])
    for key, other in _EQUAL.items():
        value, equal = OmegaConf.select(config, key), OmegaConf.select(config, other)
        if value != equal:
            raise _refused(key, value, repr(equal), f"it must equal {other}")
    attention = OmegaConf.select(config, f"{_MODEL}.override_config.attn_implementation")
    if attention not in _ATTENTION:
        raise _refused(f"{_MODEL}.override_config.attn_implementation", attention, f"one of {_ATTENTION}", _LAW)
    room, whole = config.actor_rollout_ref.rollout.max_model_len, longest_prompt + config.data.max_response_length
    if room is not None and room < whole:
        raise _refused(f"{_ROLLOUT}.max_model_len", room, f"at least {whole}", "it would cut completions short")
    if config.data.max_prompt_length < longest_prompt:
        key, why = "data.max_prompt_length", "it would drop prompts, or cut them"
        raise _refused(key, config.data.max_prompt_length, f"at least {longest_prompt}", why)
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, ImportError, HydraException) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise DisaError(
            f"verl refuses the configuration: {problem}", where="recipe, section verl", fix="correct the setting"
        ) from error


def _refused(key: str, found: Any, wanted: str, why: str) -> DisaError:
    fix = "remove the setting, or see docs/verl.md for those that are free"
    return DisaError(f"{key} is {found!r}, expected {wanted}: {why}", where="recipe, section verl", fix=fix)


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
