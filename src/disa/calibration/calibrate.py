"""From a data set, reward functions and models to an anchor in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model
from rich.console import Console

from disa.anchor import Anchor
from disa.calibration.config import CalibrationConfig
from disa.calibration.trainers_draws import TrainersDraws
from disa.errors import DisaError
from disa.lm.models import Models, Origin
from disa.pipeline import Pipeline
from disa.ray.backend import backend_on
from disa.recipe import Recipe
from disa.runs.processes import count, rank
from disa.tasks.python_rows import PythonRows, PythonRowsConfig
from disa.tasks.reward_functions import RewardFunctions, Rewards
from disa.tasks.tools import Environments, Tools

Rows = Sequence[Mapping[str, Any]]
"""A ``datasets.Dataset`` or a list of rows."""


_Recipe = create_model("_Recipe", __base__=Recipe, tasks=(PythonRowsConfig, ...))
"""A recipe whose rows are in memory."""


def calibrate(
    model: Origin,
    reward_funcs: Rewards,
    train_dataset: Rows,
    args: CalibrationConfig,
    *,
    proposal: Origin | None = None,
    eval_dataset: Rows | None = None,
    processing_class: Any = None,
    reward_processing_classes: Any = None,
    backend: str | None = None,
    tools: Sequence[Callable[..., Any]] | None = None,
    environment_factory: Environments | None = None,
    rollout_func: Callable[..., Any] | None = None,
) -> Anchor:
    """Estimate log Z of every prompt and freeze it.

    Draws trajectories from the reference and the proposal, scores them under both, estimates
    ``Z(x) = E_ref[exp(beta r)]`` by importance sampling (arXiv 2605.17295; the estimator is that of
    :func:`disa.estimate_log_partition`) and freezes the result with a fingerprint. The folder ``args.output_dir`` is a
    run directory: a call that was killed continues where it stopped, several processes that make the same call share
    the work, and ``disa inspect`` reads it.

    Parameters
    ----------
    model : str, Path or PreTrainedModel
        The reference: name, folder, or model in memory. The policy will start from it.
    reward_funcs : callable, str, PreTrainedModel or sequence of them
        TRL reward functions and reward models. Their weighted sum lies in ``args.reward_range``; None or NaN is
        undecided and left out.
    train_dataset : datasets.Dataset or sequence of rows
        Column ``prompt`` (text, or messages of any roles) and whatever the reward functions read.
    args : CalibrationConfig
    proposal : str, Path or PreTrainedModel, optional
        A stronger sampler with the same tokenizer. Without one, all trajectories are the reference's.
    eval_dataset : datasets.Dataset or sequence of rows, optional
        Rows that get a log Z for evaluation only.
    processing_class : PreTrainedTokenizerBase, optional
        By default the tokenizer beside ``model``.
    reward_processing_classes : PreTrainedTokenizerBase or list of them, optional
        Tokenizers of the reward models, one per reward function; by default those beside them.
    tools, environment_factory, rollout_func
        As in :class:`trl.GRPOTrainer`. TRL's own code then draws and judges. Log-probabilities are those of the tokens
        that the model wrote itself. Rows may come without a prompt where ``reset`` makes it of their columns.
    backend : str, optional
        ``ray`` or ``ray:HOST:PORT``: draw and score on a Ray cluster, whose nodes see the models under the same names.

    Returns
    -------
    Anchor
        For :class:`disa.DISATrainer`. log Z is in nats.

    Raises
    ------
    DisaError
        Where an argument, a row or a reward is not usable; nothing that was drawn is lost.
    """
    own = Tools(tools or (), environment_factory, rollout_func, args.max_tool_calling_iterations)
    train, heldout = (own.with_prompts(list(rows or [])) for rows in (train_dataset, eval_dataset))
    if not train:
        fix = (
            "give at least one row; where reset makes the prompts, rows of what it makes them from, such as a seed, as "
            "log Z belongs to a prompt"
        )
        raise DisaError("train_dataset has no rows", where="disa.calibrate", fix=fix)
    if not isinstance(model, str | Path) and processing_class is None:
        raise DisaError("a model in memory brings no tokenizer", where="disa.calibrate", fix="give processing_class")
    keys = args.key_columns
    if keys is None:
        keys = [name for name in train[0] if name != "prompt"]
    if own.several and "environment" not in keys:
        keys = [*keys, "environment"]
    if own:
        _check_tools(args, backend)
    reward = RewardFunctions(
        reward_funcs, args.reward_weights, reward_processing_classes, args.chat_template_kwargs, own
    )
    low, high = args.reward_range
    task = PythonRows(train, heldout, reward, (low, high), keys, own)
    models = Models(model, proposal, made_here=False, tokenizer=processing_class)
    if own:
        args = _draw_by_trl(models, task, own, args, reward_funcs, reward_processing_classes)
    say = Console(stderr=True, highlight=False, quiet=rank() > 0).print
    recipe = _recipe(args, task, models)
    pipeline = Pipeline(recipe, say=say, task=task, models=models, backend=backend_on(backend, recipe))
    pipeline.run("anchor")
    return Anchor.load(args.output_dir)


def _check_tools(args: CalibrationConfig, backend: str | None) -> None:
    """Refuse what TRL's own drawing cannot be combined with."""
    tools = "tools, environments or a rollout function"
    if count() > 1:
        raise DisaError(
            f"{count()} processes of one launch, and {tools}: TRL's trainer, which draws with them, waits at every "
            "batch for all processes of a launch, and here each of them takes parts of its own",
            where="disa.calibrate",
            fix="make the same call in several processes without a launcher: they share the work; launch the training",
        )
    if found := "use_vllm" if args.use_vllm else "a backend" if backend else None:
        problem = f"{found} and {tools} are not supported together yet"
        raise DisaError(problem, where="disa.calibrate", fix="calibrate without it, in several processes if need be")


def _draw_by_trl(
    models: Models, task: PythonRows, tools: Tools, args: CalibrationConfig, reward_funcs: Rewards, tokenizers: Any
) -> CalibrationConfig:
    """Let TRL's data path draw; returns the arguments with which prompts are then rendered."""
    own, tokenizer = models.paths, models.tokenizer()
    drawn = {o: TrainersDraws(o, tokenizer, task.row, reward_funcs, tokenizers, tools, args) for o in own.values()}
    models.draw_with({role: drawn[o] for role, o in own.items()}, f"{tools.identity} {task.reward_fingerprint}")
    arguments = (args.chat_template_kwargs or {}) | tools.template_arguments(tokenizer)
    return replace(args, chat_template_kwargs=arguments)


def _recipe(args: CalibrationConfig, task: PythonRows, models: Models) -> Recipe:
    share = args.reference_share
    if share is None:
        share = 0.25 if models.has_proposal else 1.0
    values = {
        "run_dir": str(args.output_dir),
        "tasks": task.config.model_dump(),
        "models": {role: str(path) for role, path in models.paths.items()}
        if models.on_disk
        else {"reference": "given"},
        "sampling": {
            "temperature": args.temperature,
            "max_completion_length": args.max_completion_length,
            "conversational": task.messages,
            "messages": task.messages,
            "chat_template_kwargs": args.chat_template_kwargs or {},
        },
        "proposals": {
            "per_prompt": args.num_generations,
            "per_heldout_prompt": args.num_generations_eval,
            "reference_share": share,
            "adaptive": args.adaptive,
            "engine": "vllm" if args.use_vllm else "transformers",
            "vllm": args.vllm,
            "compute": args.compute,
            "seed": args.seed,
            "batch_size": args.batch_size,
        },
        "scoring": {"compute": args.compute},
        "partition": args.partition or {},
        "training": {"inverse_temperature": args.inverse_temperature, "prompts_per_step": 1},
    }
    try:
        return _Recipe.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise DisaError(
            f"{problem['msg']}, found {problem['input']!r}",
            where=f"CalibrationConfig, field {_ARGUMENT.get(field, field)}",
            fix="correct the value",
        ) from error


_ARGUMENT = {
    "proposals.per_prompt": "num_generations",
    "proposals.per_heldout_prompt": "num_generations_eval",
    "training.inverse_temperature": "inverse_temperature",
    "run_dir": "output_dir",
} | {f"proposals.{name}": name for name in ("reference_share", "adaptive", "vllm", "compute", "seed", "batch_size")}
_ARGUMENT |= {f"sampling.{name}": name for name in ("temperature", "max_completion_length", "chat_template_kwargs")}
"""Fields of a recipe by the names that :class:`CalibrationConfig` gives them."""
