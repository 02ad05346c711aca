"""Settings of a trainer with a log Z that do not go together, refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.tasks.tools import Tools
from disa.training.disa_config import DISAConfig
from disa.training.log_z import LogZ
from disa.training.stored import StoredTrajectories


def check_args(args: Any) -> None:
    """Refuse TRL's own configuration, which knows no inverse temperature."""
    if not isinstance(args, DISAConfig):
        problem = f"args is {type(args).__name__}, expected DISAConfig"
        raise DisaError(
            problem, where="args", fix="give disa.DISAConfig(inverse_temperature=..., ...); it takes TRL's too"
        )


def check_given(anchor: Any, reward_funcs: Any, tools: Tools) -> None:
    """Refuse an anchor or a reward that is none; an environment may bring its own."""
    if not isinstance(anchor, Anchor | str | Path):
        raise DisaError(
            f"anchor is {type(anchor).__name__}, expected an Anchor or its folder",
            where="anchor",
            fix="give what disa.calibrate returned, or the folder RUN/5_anchor",
        )
    if reward_funcs is None and any(tools.rewards.values()):
        return
    for function in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        if not (callable(function) or isinstance(function, str)):
            raise DisaError(
                f"a reward function is {function!r}, expected a function, or a reward model and its name",
                where="reward_funcs",
                fix="give function(prompts=..., completions=..., **columns), as GRPOTrainer takes it",
            )


def check_steps(dataset: Dataset, args: DISAConfig) -> None:
    """Refuse fewer rows than a step takes: TRL fills no step with them, and would train on nothing."""
    needed = args.generation_batch_size // args.num_generations
    if len(dataset) < needed:
        raise DisaError(
            f"{len(dataset)} rows, expected at least the {needed} distinct ones that completions are drawn for at once",
            where="train_dataset",
            fix="give more prompts, repeat them, lower per_device_train_batch_size, or raise num_generations",
        )
    if 0 < args.max_steps < args.warmup_steps:
        raise DisaError(
            f"warmup_steps={args.warmup_steps} is more than max_steps={args.max_steps}, so the learning rate would "
            "never reach its peak",
            where="DISAConfig",
            fix="use fewer warm-up steps",
        )


def check_together(log_z: LogZ, args: DISAConfig, datasets: list[Dataset], offline: StoredTrajectories | None) -> None:
    """Refuse settings that do not go together, before a model is loaded."""
    log_z.check(args, datasets)
    if (offline is None) == (args.offline_share > 0):
        raise DisaError(
            f"offline_share is {args.offline_share}, but offline trajectories are "
            f"{'missing' if offline is None else 'given'}",
            where=log_z.name,
            fix="give both, or leave both out",
        )
    if args.prompts == "signal":
        if log_z.signal is None:
            raise DisaError(
                "prompts='signal' needs the anchor of DISA, whose intervals say what each prompt may teach",
                where=f"DISAConfig, {log_z.name}",
                fix="leave prompts out",
            )
        if args.steps_per_generation % args.gradient_accumulation_steps:
            raise DisaError(
                f"steps_per_generation={args.steps_per_generation} with prompts='signal', expected a multiple of "
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}: a step's prompts are drawn at once",
                where="DISAConfig",
                fix="leave steps_per_generation out",
            )
    if not log_z.frozen:
        own = "prompts baseline baseline_prior_strength length_scale residual_clip offline_share flagged"
        for name in own.split():
            default = DISAConfig.__dataclass_fields__[name].default
            if getattr(args, name) != default:
                raise DisaError(
                    f"{name}={getattr(args, name)!r} belongs to a frozen log Z, expected its default {default!r}",
                    where=f"DISAConfig, {log_z.name}",
                    fix=f"leave {name} out",
                )
