"""Check everything that can be checked, then start verl: a cluster's queue is no place to find a typo."""

from __future__ import annotations

import importlib.metadata
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.lm.fingerprint import take_fingerprint
from disa.lm.loading import load_model, load_tokenizer
from disa.lm.sampling_config import check_context, encode_prompt
from disa.recipe import Recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt
from disa.tasks import make_task
from disa.training.flags import flag_plan

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from disa.runs.provenance import Fingerprint

TESTED = "0.9.1"
"""Release of verl whose configuration, registries and data path the tests run against."""
WATCH = 5.0
"""Seconds between looks at Ray's nodes."""
PATIENCE = 7
"""Looks after which Ray, by its defaults, has noticed that a node is gone."""


def launch(
    recipe: Recipe,
    *,
    anchor: str | Path | None,
    check_only: bool,
    say: Callable[[str], None],
    export: str | Path | None = None,
) -> Path:
    """Train a recipe's policy with verl; returns ``RUN/verl``.

    Before Ray starts: the plugin is in verl's registries, the run is finished up to its anchor, verl accepts the
    configuration and nothing in it changes what log Z means, the anchor's fingerprint is that of the reference, the
    sampling law and the reward which verl will use, and every prompt has a log Z. What was checked is written to
    ``config.yaml`` and is what runs.

    Parameters
    ----------
    recipe : Recipe
        ``verl`` holds settings in verl's own names.
    anchor : path, optional
        Anchor folder; by default the run's ``5_anchor``.
    check_only : bool
        Stop before Ray.
    say : callable
        Receives one line a step.
    export : path, optional
        Stop before Ray, and write the last checkpoint of this training as a model folder in float32.

    Raises
    ------
    DisaError
        Where any of the checks fails, or training ends early: a reward worker refuses, a node is lost.
    """
    _refuse_unsupported(recipe)
    check_registry()
    from omegaconf import OmegaConf

    from disa.pipeline import Pipeline
    from disa.verl.export import export_checkpoint
    from disa.verl.rows import anchor_digest, write_verl_rows
    from disa.verl.settings import compose_config

    run_dir, sampling = Path(recipe.run_dir).absolute(), recipe.sampling
    # Nothing may work here: a stage that would have to run again says so, and its old rows are not used.
    Pipeline(recipe, may_work=(), say=lambda line: None).run("tasks" if anchor else "anchor")
    frozen = Anchor.load(Path(anchor or run_dir / "5_anchor").absolute())
    reference = recipe.models.reference or str(run_dir / "warmup" / "reference")
    train, validation = _prompts(run_dir, frozen, recipe)
    tokenizer, model = load_tokenizer(reference), load_model(reference, device_map=recipe.models.device_map)
    ids = {p.prompt_id: encode_prompt(tokenizer, p.prompt, sampling) for p in (*train, *validation)}
    longest = max(ids.values(), key=len)
    check_context(model.config, longest, sampling, where="verl, longest prompt")
    folder = run_dir / "verl"
    config = compose_config(
        recipe,
        reference=str(Path(reference).absolute()) if Path(reference).is_dir() else reference,
        folder=folder,
        prompts=len(train),
        prompt_length=len(longest),
        reward=frozen.fingerprint.reward,
        anchor=anchor_digest(frozen),
    )
    frozen.verify(_fingerprint(config, recipe, model, tokenizer))
    frozen.verify_prompts(ids)
    folder.mkdir(parents=True, exist_ok=True)
    write_verl_rows(folder / "train.parquet", train, frozen, sampling)
    write_verl_rows(folder / "validation.parquet", validation, frozen, sampling)
    OmegaConf.save(config, folder / "config.yaml")
    nodes, gpus = config.trainer.nnodes, config.trainer.n_gpus_per_node
    say(f"checked: {len(train)} prompts, anchor {frozen.path}, {nodes} nodes of {gpus} GPUs, {folder / 'config.yaml'}")
    if export:
        step = export_checkpoint(Path(config.trainer.default_local_dir), Path(export))
        say(f"step {step}, float32: {export}")
    elif not check_only:
        del model  # the workers load their own
        _run(config, folder / "refusals")
        say(f"trained: {config.trainer.default_local_dir}")
    return folder


def check_registry() -> None:
    """Import the plugin and see that verl knows its names, and by them these functions.

    Raises
    ------
    DisaError
        Where verl is missing, of another release, or has another plugin under the name.
    """
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError as error:
        raise DisaError(
            "verl is not installed", where="disa verl", fix=f"pip install 'verl=={TESTED}', see docs/verl.md"
        ) from error
    if found.rsplit(".", 1)[0] != TESTED.rsplit(".", 1)[0]:
        raise DisaError(
            f"verl {found} is installed; the plugin is written for {TESTED}",
            where="disa verl",
            fix=f"pip install 'verl=={TESTED}'",
        )
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    from disa.verl import plugin

    for registry, own, what in (
        (POLICY_LOSS_REGISTRY, plugin.frozen_log_z_loss, "policy loss"),
        (ADV_ESTIMATOR_REGISTRY, plugin.residual_advantage, "advantage estimator"),
    ):
        if registry.get(plugin.NAME) is not own:
            raise DisaError(
                f"verl's {what} '{plugin.NAME}' is {registry.get(plugin.NAME)}",
                where="disa verl",
                fix="remove the other plugin of this name (entry points verl.plugins, VERL_USE_EXTERNAL_MODULES)",
            )


def _refuse_unsupported(recipe: Recipe) -> None:
    """What a recipe can say and verl cannot do."""
    training = recipe.training
    for wrong, field, found, fix in (
        (not recipe.sampling.conversational, "sampling.conversational", False, "set it to true, and a chat template"),
        (training.offline_share > 0, "training.offline_share", training.offline_share, "set it to 0"),
        (training.residual_clip is not None, "training.residual_clip", training.residual_clip, "set it to null"),
        (training.length_scale != 1, "training.length_scale", training.length_scale, "set it to 1"),
        (training.optim is not None, "training.optim", training.optim, "set it to null, and name verl's own"),
        (training.flagged == "group", "training.flagged", "group", "use train or skip"),
        (training.schedule == "linear", "training.schedule", "linear", "use constant or cosine"),
    ):
        if wrong:
            raise DisaError(f"{field} is {found!r}, which the verl plugin cannot do", where="recipe", fix=fix)


def _prompts(run_dir: Path, anchor: Anchor, recipe: Recipe) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts that the flag policy keeps, and validation prompts: heldout where there is no such split."""
    by_split = {
        split: read_rows(run_dir / "1_tasks" / f"{split}.parquet", Prompt)
        for split in ("train", "validation", "heldout")
    }
    plan = flag_plan(anchor, [p.prompt_id for p in by_split["train"]], recipe.training.flagged)
    kept = [p for p in by_split["train"] if plan.source[p.prompt_id] != "skip"]
    if len(kept) < recipe.training.prompts_per_step:
        raise DisaError(
            f"{len(kept)} training prompts, fewer than training.prompts_per_step {recipe.training.prompts_per_step}",
            where="recipe",
            fix="lower prompts_per_step: verl drops incomplete batches",
        )
    return kept, by_split["validation"] or by_split["heldout"]


def _fingerprint(config: DictConfig, recipe: Recipe, model: Any, tokenizer: Any) -> Fingerprint:
    """The anchor's conditions, as verl's configuration has them."""
    task = make_task(recipe.tasks)
    sampling = recipe.sampling.model_copy(
        update={
            "temperature": config.actor_rollout_ref.rollout.temperature,
            "max_completion_length": config.data.max_response_length,
        }
    )
    return take_fingerprint(
        model,
        tokenizer,
        sampling,
        reward=task.reward_fingerprint,
        inverse_temperature=config.reward.custom_reward_function.reward_kwargs.inverse_temperature,
        task=task.fingerprint,
    )


def _run(config: DictConfig, refusals: Path) -> None:
    """What verl's own command line calls, with the configuration that was checked; the cause where it ends early."""
    import ray
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.utils.device import auto_set_device

    shutil.rmtree(refusals, ignore_errors=True)
    auto_set_device(config)
    runner, ended = _Watched(TaskRunnerV1), threading.Event()
    threading.Thread(target=runner.watch, args=(ended,), daemon=True).start()
    try:
        run_ppo(config, task_runner_class=runner)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        said = [path.read_text(encoding="utf-8") for path in sorted(refusals.glob("*.txt"))]
        again = "start again: training continues from its last checkpoint"
        if isinstance(cause, DisaError) and said:
            raise DisaError(f"{cause.problem}; a reward worker said: {said[0]}", where=cause.where) from error
        if isinstance(cause, DisaError):
            raise cause from error
        # Its peers fail before Ray has missed a node's heartbeats.
        for _ in range(PATIENCE):
            if lost := runner.look():
                break
            time.sleep(WATCH)
        if lost:
            raise DisaError(f"node {lost} left the Ray cluster", where="disa verl", fix=again) from error
        raise
    finally:
        ended.set()


class _Watched:
    """verl's task runner, killed when a node is lost: verl itself would wait for that node's completions for ever."""

    def __init__(self, runner: Any) -> None:
        self._class, self._handle = runner, None
        self._seen: set[str] = set()

    def options(self, **options: Any) -> _Watched:
        self._class = self._class.options(**options)
        return self

    def remote(self) -> Any:
        self.look()
        self._handle = self._class.remote()
        return self._handle

    def watch(self, ended: threading.Event) -> None:
        """Look every few seconds, from the start of the runner to the end of the run."""
        import ray

        while not ended.wait(WATCH):
            if self._handle is not None and self.look():
                ray.kill(self._handle)
                return

    def look(self) -> str:
        """Addresses of the nodes that were there before and are no more."""
        import ray

        nodes = {node["NodeID"]: node for node in ray.nodes()}
        self._seen |= {key for key, node in nodes.items() if node["Alive"]}
        return ", ".join(nodes[key]["NodeManagerAddress"] for key in self._seen if not nodes[key]["Alive"])
