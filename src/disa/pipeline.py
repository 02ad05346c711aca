"""The pipeline: which stage reads what, in one place.

tasks -> (warmup) -> proposals -> scoring -> partition -> anchor -> training -> evaluation -> report

Each stage describes itself beside its own code: inputs, identity, work. Here they are put together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from disa.anchor.probes import Probe, take_probes
from disa.anchor.stage import anchor_stage
from disa.errors import DisaError
from disa.evaluation.stage import evaluation_stage
from disa.lm.fingerprint import take_fingerprint
from disa.lm.models import Models
from disa.lm.sampling_config import SamplingConfig, encode_prompt
from disa.partition.config import PartitionConfig
from disa.partition.pilot import chosen_source, pilot_stage
from disa.partition.regression import PromptFeatures, reference_features
from disa.partition.rounds import further_draws, round_target
from disa.partition.stage import partition_stage
from disa.preflight import preflight
from disa.proposals.config import DrawPlan, ProposalsConfig
from disa.proposals.rounds import round_stage
from disa.proposals.run import proposals_stage
from disa.recipe import Recipe
from disa.report.stage import report_stage
from disa.runs import processes
from disa.runs.folders import StageFolder
from disa.runs.locks import shared
from disa.runs.parts import Backend
from disa.runs.provenance import Fingerprint, digest
from disa.runs.records import Prompt, ScoredTrajectory
from disa.runs.sharing import SHARING
from disa.runs.stage import Stage
from disa.scoring.run import scoring_stage
from disa.stages import STAGES
from disa.tasks import Task, make_task
from disa.tasks.stage import tasks_stage
from disa.training.config import TrainingConfig
from disa.training.stage import training_stage
from disa.warmup.run import warmup_stage

EVALUATED_SPLITS = ("heldout", "train")


class NotFinished(DisaError):
    """A stage that may not work here has no finished output."""


class Pipeline:
    """One recipe's stages; ``say`` receives one line per stage.

    Stages outside ``may_work`` must have finished already; ``finished`` ones, by folder name, finished in another run
    directory and are taken as they are. ``task`` and ``models`` are those that no recipe can name, in place of the
    recipe's. A ``backend`` makes the parts of ``2_proposals`` and ``3_scoring`` in this process's place.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        may_work: tuple[str, ...] = STAGES,
        say: Callable[[str], None],
        finished: Mapping[str, StageFolder] | None = None,
        task: Task | None = None,
        models: Models | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.recipe, self.run_dir, self._print, self._may_work = recipe, Path(recipe.run_dir), say, may_work
        self.task, self._given_models = task or make_task(recipe.tasks), models
        self._checked = models is not None and not models.on_disk  # without files there is nothing to look at
        self._done: dict[str, StageFolder] = dict(finished or {})
        self._backend = backend

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._print(line)

    @property
    def work(self) -> str:
        """What this pipeline does; processes whose pipelines do the same may share a run directory."""
        return digest(self.recipe.model_dump(mode="json", exclude={"run_dir", "comparison"}))

    def run(self, until: str = STAGES[-1]) -> None:
        """Bring every stage up to ``until`` to its finished state."""
        with shared(self.run_dir, self.work):
            for name in STAGES[: STAGES.index(until) + 1]:
                if name != "warmup" or self.recipe.warmup:
                    getattr(self, name)()

    def _check(self) -> None:
        """Refuse a recipe that cannot end well, once, before the first stage behind the tasks works."""
        if not self._checked:
            self._checked = True
            tokenizer = self._given_models and self._given_models.tokenizer()
            self._say(*preflight(self.recipe, self.task, self._calibrated, tokenizer).warnings)

    def tasks(self) -> StageFolder:
        """Prompts of every split."""
        return self._stage(tasks_stage(self.task))

    def warmup(self) -> StageFolder:
        """Reference and proposal by supervised training."""
        assert self.recipe.warmup is not None  # who asks for it has looked
        return self._stage(warmup_stage(self.recipe.warmup, self.recipe.sampling, self.task, self.tasks()))

    def proposals(self) -> StageFolder:
        """Offline trajectories."""
        given = self._drawn_by, *self._given, self._calibrated
        return self._stage(proposals_stage(*given, self._inputs()))

    @functools.cached_property
    def _drawn_by(self) -> ProposalsConfig:
        """How trajectories are drawn, with a pilot's choice where the recipe leaves it to one."""
        config = self.recipe.proposals
        if config.source != "auto":
            return config
        train = functools.partial(self._prompts, "train")
        return chosen_source(config, self._stage(pilot_stage(config, *self._given, train, self._inputs())))

    def scoring(self) -> StageFolder:
        """Log-probabilities under both models, and rewards, of the first draws and of the rounds behind them."""
        return self.scores()["scoring"]

    def scores(self) -> dict[str, StageFolder]:
        """All folders of scored trajectories: that of the first draws, and those of the rounds."""
        folders = {"scoring": self._score(self.proposals())}
        for number in range(1, self.recipe.proposals.rounds + 1):
            folders[f"round-{number}"] = self._score(self._round(number, dict(folders)), number)
        return folders

    def _score(self, drawn: StageFolder, number: int = 0) -> StageFolder:
        here = self.models.has_proposal or not self.recipe.proposals.drawn_elsewhere
        given = self.recipe.scoring, *self._given, self._calibrated, drawn
        return self._stage(scoring_stage(*given, self._drawn_by, proposal_here=here, number=number))

    def _round(self, number: int, earlier: dict[str, StageFolder]) -> StageFolder:
        config, target = self._drawn_by, self._target()

        def plan() -> DrawPlan:
            prompts = self._calibrated()
            wanted = {prompt.prompt_id for prompt in prompts}
            rows = [
                r for folder in earlier.values() for r in folder.thin_rows(ScoredTrajectory) if r.prompt_id in wanted
            ]
            return further_draws(number, config, *target, prompts, rows)

        train = functools.partial(self._prompts, "train")
        given = config, *self._given, train, self._inputs() | earlier
        return self._stage(round_stage(number, *given, round_target(config, *target), plan, self._say))

    def partition(self) -> StageFolder:
        """Estimates of log Z."""
        target, proposals = self._target(), self.recipe.proposals
        return self._stage(partition_stage(*target, proposals, self._calibrated, self.scores(), self._features))

    def anchor(self) -> StageFolder:
        """The frozen estimates with their fingerprint."""
        given = self.task, self.recipe.sampling, self._fingerprint, self._probes
        return self._stage(anchor_stage(self.partition(), *given, lambda: self.scoring().manifest["parity"]["bound"]))

    def training(self) -> list[StageFolder]:
        """One folder per method; a baseline's does not depend on the anchor."""
        config = self.recipe.training
        return [self.train(method, config, f"6_training/{method}") for method in config.methods]

    def train(self, method: str, config: TrainingConfig, folder: str) -> StageFolder:
        """Train one method under given settings into a folder of its own."""
        given = *self._given, functools.partial(self._prompts, "train"), self._inputs()
        return self._stage(training_stage(method, config, folder, *given, self.anchor, self.scores))

    def evaluation(self) -> list[StageFolder]:
        """One folder per model: the reference and every trained policy."""
        trained = dict(zip(self.recipe.training.methods, self.training(), strict=True))
        models = {"reference": None} | trained
        return [self.evaluate(name, folder, f"7_evaluation/{name}") for name, folder in models.items()]

    def evaluate(
        self, name: str, trained: StageFolder | None, folder: str, splits: tuple[str, ...] = EVALUATED_SPLITS
    ) -> StageFolder:
        """Sample and judge one model, the reference where none is trained, on some splits into a folder of its own."""
        given = *self._given, self._prompts, splits, self._inputs()
        return self._stage(evaluation_stage(name, self.recipe.evaluation, folder, *given, trained))

    def report(self) -> StageFolder:
        """Tables, figures and the page."""
        finished = self.scores(), self.anchor(), self.training(), self.evaluation()
        return self._stage(report_stage(self.recipe, self._calibrated, *finished, lambda: list(self._done.values())))

    def _stage(self, stage: Stage) -> StageFolder:
        """Open a stage once per pipeline; do its work unless it is done, or refuse where it may not."""
        name = stage.folder
        if name in self._done:
            return self._done[name]
        folder = StageFolder(self.run_dir, name, version=stage.version, identity=stage.identity, inputs=stage.inputs)
        folder.backend = self._backend
        # A worker outside a launch may finish the stage while its processes look, one before and one after.
        if processes.first_says(folder.finished) if stage.by == "launch" else folder.finished:
            self._say(f"{name}: finished earlier, nothing changed")
        elif stage.name not in self._may_work:
            raise NotFinished(
                f"stage {stage.name} has no finished output for this recipe",
                where=str(folder.path),
                fix=f"run 'disa {stage.name} RECIPE' first, or 'disa run RECIPE' for all stages",
            )
        else:
            if stage.name != "tasks":
                self._check()
            waiting = functools.partial(self._say, f"{name}: another process works here, waiting for it")
            try:
                SHARING[stage.by](folder, stage.work, waiting)
            except KeyboardInterrupt:
                self._say(f"{name}: interrupted; {folder.kept()}")
                raise
            self._say(f"{name}: done in {folder.manifest['seconds']:.1f} s")
            self._say(*(f"  {line}" for line in stage.says(folder)))
        self._done[name] = folder
        return folder

    def _prompts(self, *splits: str) -> list[Prompt]:
        rows = self.tasks().rows(Prompt)
        return [row for split in splits for row in rows if row.split == split]

    def _probes(self) -> list[Probe]:
        """What the anchor keeps of its prompts."""
        tokenizer, sampling = self.models.tokenizer(), self.recipe.sampling
        ids = {p.prompt_id: encode_prompt(tokenizer, p.prompt, sampling) for p in self._calibrated()}
        return take_probes(
            ids, [row for folder in self.scores().values() for row in folder.thin_rows(ScoredTrajectory)]
        )

    def _calibrated(self) -> list[Prompt]:
        """Prompts that get a log Z."""
        return self._prompts("train", "validation", "heldout")

    @functools.cached_property
    def models(self) -> Models:
        """Reference and proposal: those given, or the warm-up's."""
        if self._given_models is not None:
            return self._given_models
        given = self.recipe.models
        if self.recipe.warmup is None:
            assert given.reference is not None  # a recipe without a warm-up names it
            return Models(given.reference, given.proposal, made_here=False, device_map=given.device_map)
        folder = self.warmup().path
        return Models(
            folder / "reference", folder / "proposal" if self.recipe.warmup.proposal else None, made_here=True
        )

    @property
    def _given(self) -> tuple[SamplingConfig, Task, Models]:
        return self.recipe.sampling, self.task, self.models

    def _inputs(self) -> dict[str, StageFolder]:
        """What every stage that runs a model reads."""
        return {"tasks": self.tasks()} | ({"warmup": self.warmup()} if self.recipe.warmup else {})

    def _target(self) -> tuple[PartitionConfig, float, tuple[float, float]]:
        return self.recipe.partition, self.recipe.training.inverse_temperature, self.task.reward_range

    def _features(self, prompts: list[Prompt]) -> PromptFeatures:
        return reference_features(self.models, self.recipe.sampling, self._fingerprint(), prompts)

    def _fingerprint(self) -> Fingerprint:
        return take_fingerprint(
            self.models.load(("reference",))["reference"],
            self.models.tokenizer(),
            self.recipe.sampling,
            reward=self.task.reward_fingerprint,
            inverse_temperature=self.recipe.training.inverse_temperature,
            task=self.task.fingerprint,
            tools=self.task.tools,
        )
