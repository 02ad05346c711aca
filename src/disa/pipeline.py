"""The pipeline: which stage reads what, in one place.

tasks -> (warmup) -> proposals -> scoring -> partition -> anchor -> training -> evaluation -> report

Each method opens its stage's folder with the fingerprint of everything the stage depends on, skips
it where that is already done, and otherwise does the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from disa.anchor import Anchor
from disa.anchor.anchor import VERSION as ANCHOR_VERSION
from disa.anchor.anchor import freeze
from disa.errors import DisaError
from disa.evaluation import run as evaluation
from disa.lm.fingerprint import take_fingerprint
from disa.lm.loading import load_model, load_tokenizer
from disa.lm.sampling import encode_prompt
from disa.partition import plan as budget
from disa.partition import stage as partition
from disa.partition.features import features_fingerprint, prompt_features
from disa.partition.regression import PromptFeatures
from disa.proposals import imported as importer
from disa.proposals import run as proposals
from disa.proposals.engines import make_engines
from disa.proposals.imported import files_digest
from disa.recipe import Recipe
from disa.report import stage as report
from disa.runs import processes
from disa.runs.folders import StageFolder, read_json, write_json
from disa.runs.locks import shared
from disa.runs.provenance import Fingerprint, digest
from disa.runs.records import EvaluationRecord, PartitionEstimate, Prompt, ScoredTrajectory, Trajectory
from disa.runs.sharing import SHARING, Work
from disa.scoring import run as scoring
from disa.stages import STAGES
from disa.tasks import SPLITS, make_task
from disa.training import run as training
from disa.training.config import TrainingConfig
from disa.training.methods import METHODS
from disa.warmup import run as warmup

EVALUATED_SPLITS = ("heldout", "train")
"""What a run evaluates on."""
TASKS_VERSION = 1


class NotFinished(DisaError):
    """A stage that may not work here has no finished output."""


class Pipeline:
    """One recipe's stages.

    Parameters
    ----------
    recipe : Recipe
    may_work : collection of str
        Stages that may do work; any other must have finished already.
    say : callable
        Receives one line per stage.
    finished : mapping of str to StageFolder, optional
        By folder name, stages that finished in another run directory and are taken as they are.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        may_work: tuple[str, ...] = STAGES,
        say: Callable[[str], None],
        finished: Mapping[str, StageFolder] | None = None,
    ) -> None:
        self.recipe, self.run_dir, self._say, self._may_work = recipe, Path(recipe.run_dir), say, may_work
        self.task = make_task(recipe.tasks)
        self._done: dict[str, StageFolder] = dict(finished or {})
        self._digests: dict[str, str] = {}

    @property
    def work(self) -> str:
        """What this pipeline does; processes whose pipelines do the same may share a run directory."""
        return digest(self.recipe.model_dump(mode="json", exclude={"run_dir", "comparison"}))

    def run(self, until: str = STAGES[-1]) -> StageFolder:
        """Bring every stage up to ``until`` to its finished state; returns the last one's folder."""
        with shared(self.run_dir, self.work):
            for name in STAGES[: STAGES.index(until) + 1]:
                if name != "warmup" or self.recipe.warmup:
                    last = getattr(self, name)()
        return last

    def tasks(self) -> StageFolder:
        """Prompts of every split."""

        def work(stage: StageFolder) -> None:
            counts = {}
            for split in SPLITS:
                rows = self.task.prompts(split)
                stage.write_part(split, rows, Prompt)
                counts[split] = len(rows)
            report = self.task.data_report()
            if report is not None:
                write_json(stage.path / "left_out.json", report.left_out)
            stage.finish(prompts=counts, data=report and report.facts)

        identity = self.recipe.tasks.identity() | {"task": self.task.fingerprint}
        return self._stage("tasks", "1_tasks", TASKS_VERSION, identity, {}, work)

    def warmup(self) -> StageFolder:
        """Reference and proposal by supervised training."""

        def work(stage: StageFolder) -> None:
            warmup.run_warmup(stage, config, self.task, self._prompts("warmup"), sampling)

        config, sampling = self.recipe.warmup, self.recipe.sampling
        identity = {"warmup": config.identity(), "sampling": sampling.identity()}
        return self._stage("warmup", "warmup", warmup.VERSION, identity, {"tasks": self.tasks()}, work, by="launch")

    def proposals(self) -> StageFolder:
        """Offline trajectories."""

        def work(stage: StageFolder) -> None:
            prompts = self._prompts("train", "validation", "heldout")
            self._draw(stage, prompts)

        config, sampling = self.recipe.proposals, self.recipe.sampling
        identity = {"proposals": config.identity(), "sampling": sampling.identity()} | self._model_identity("proposal")
        identity |= {"files": files_digest(config.files), "importer": importer.VERSION} if config.files else {}
        inputs = self._model_inputs()
        return self._stage("proposals", "2_proposals", proposals.VERSION, identity, inputs, work, by="parts")

    def scoring(self) -> StageFolder:
        """Log-probabilities under both models, and rewards, of the first draws and of the rounds behind them."""
        return self.scores()["scoring"]

    def scores(self) -> dict[str, StageFolder]:
        """All folders of scored trajectories: that of the first draws, and those of the rounds."""
        folders = {"scoring": self._score_first()}
        for number in range(1, self.recipe.proposals.rounds + 1):
            folders[f"round-{number}"] = self._round(number, dict(folders))
        return folders

    def _score_first(self) -> StageFolder:
        """Log-probabilities under both models, and rewards, of the first draws."""

        def work(stage: StageFolder) -> None:
            prompts = self._prompts("train", "validation", "heldout")
            rows = self.proposals().rows(Trajectory)
            scoring.run_scoring(stage, config, sampling, self.task, prompts, rows, self._models(), self._tokenizer())

        config, sampling = self.recipe.scoring, self.recipe.sampling
        identity = {"scoring": config.identity(), "reward": self.task.reward_fingerprint}
        inputs = {"proposals": self.proposals()}
        return self._stage("scoring", "3_scoring", scoring.VERSION, identity, inputs, work, by="parts")

    def _round(self, number: int, earlier: dict[str, StageFolder]) -> StageFolder:
        """Draw and score further trajectories where everything drawn so far leaves log Z uncertain.

        The folders lie within ``2_proposals`` and ``3_scoring``. Both belong to the scoring stage, as a round's draws
        depend on the rewards of those before it.
        """

        def draw(stage: StageFolder) -> None:
            plan = self._plan(stage, number, earlier)
            known = self._prompts("train")
            prompts = [p for p in known if any(plan.get(p.prompt_id, {}).values())]
            more = sum(len(draws) for p in prompts for draws in plan[p.prompt_id].values())
            self._say(f"{stage.name}: {more} more trajectories for {len(prompts)} of {len(known)} prompts")
            if prompts:
                self._draw(stage, prompts, plan)
            else:
                stage.finish(trajectories=0, prompts=0)

        def score(stage: StageFolder) -> None:
            prompts, rows = self._prompts("train"), drawn.rows(Trajectory)
            own, models, tokenizer = self.recipe.scoring, self._models() if rows else {}, self._tokenizer()
            scoring.run_scoring(stage, own, sampling, self.task, prompts, rows, models, tokenizer, verdict_needed=False)

        config, sampling, training = self.recipe.proposals, self.recipe.sampling, self.recipe.training
        target = {"inverse_temperature": training.inverse_temperature, "reward_range": list(self.task.reward_range)}
        if config.resample:
            # What raises the flags; a regressor has no say.
            estimator = {k: v for k, v in self.recipe.partition.identity().items() if k != "regressor"}
            target |= {"flags": estimator | {"version": partition.VERSION}}
        identity = {"proposals": config.identity(), "sampling": sampling.identity(), "round": number} | target
        inputs = self._model_inputs() | earlier
        folder = f"2_proposals/round-{number}"
        drawn = self._stage("scoring", folder, proposals.VERSION, identity, inputs, draw, by="parts")
        identity = {"scoring": self.recipe.scoring.identity(), "reward": self.task.reward_fingerprint}
        inputs, folder = {"proposals": drawn}, f"3_scoring/round-{number}"
        return self._stage("scoring", folder, scoring.VERSION, identity, inputs, score, by="parts")

    def _plan(self, stage: StageFolder, number: int, earlier: dict[str, StageFolder]) -> proposals.Plan:
        """The draws of a round: what all earlier ones call for, written down before the first is made."""
        path = stage.path / "allocation.json"
        if not path.is_file():
            resample = self.recipe.proposals.resample
            plan = self._resampling(earlier) if resample else self._allocation(number, earlier)
            write_json(path, {i: {s: [r.start, r.stop] for s, r in draws.items()} for i, draws in plan.items()})
        return {i: {s: range(*ends) for s, ends in draws.items()} for i, draws in read_json(path).items()}

    def _allocation(self, number: int, earlier: dict[str, StageFolder]) -> proposals.Plan:
        """What a round of an adaptive budget adds."""
        config, prompts = self.recipe.proposals, self._prompts("train")
        rows = self._rows(earlier, prompts)
        return budget.plan_round(
            rows,
            budget=(config.per_prompt * len(prompts) - len(rows)) // (config.adaptive.rounds - number + 1),
            cap=config.adaptive.cap,
            reference_share=config.reference_share,
            precision=config.adaptive.precision,
            outlook=(1.0 - config.reference_share) * config.per_prompt,
            beta=self.recipe.training.inverse_temperature,
            reward_range=self.task.reward_range,
        )

    def _resampling(self, earlier: dict[str, StageFolder]) -> proposals.Plan:
        """What a round adds for prompts flagged for want of draws; flags are as 4_partition would raise them."""
        config, beta = self.recipe.partition, self.recipe.training.inverse_temperature
        # The gate learns from all prompts together, so that none may be missing.
        prompts = self._prompts("train", "validation", "heldout")
        rows = self._rows(earlier, prompts)
        if config.method != "pass_rate":
            budget.require_weights(rows, "proposals.resample")
        known = partition.estimate_drawn(config, beta, self.task.reward_range, prompts, rows)
        return budget.resample_flagged(rows, {row.prompt_id: row.flags for row in known if row.split == "train"})

    @staticmethod
    def _rows(folders: dict[str, StageFolder], prompts: list[Prompt]) -> list[ScoredTrajectory]:
        wanted = {prompt.prompt_id for prompt in prompts}
        return [r for folder in folders.values() for r in folder.rows(ScoredTrajectory) if r.prompt_id in wanted]

    def partition(self) -> StageFolder:
        """Estimates of log Z."""

        def work(stage: StageFolder) -> None:
            prompts = self._prompts("train", "validation", "heldout")
            rows = [row for folder in self.scores().values() for row in folder.rows(ScoredTrajectory)]
            features = self._features(prompts) if config.regressor else None
            partition.run_partition(
                stage,
                config,
                beta,
                self.task.reward_range,
                prompts,
                rows,
                features,
                self.recipe.proposals.adaptive,
                resample=self.recipe.proposals.resample is not None,
            )

        config, beta = self.recipe.partition, self.recipe.training.inverse_temperature
        identity = {
            "partition": config.identity(),
            "inverse_temperature": beta,
            "reward_range": list(self.task.reward_range),
        }
        if adaptive := self.recipe.proposals.adaptive:
            # What the flag capped depends on; runs without such a budget keep their identity.
            identity["capped"] = {"cap": adaptive.cap, "precision": adaptive.precision}
        return self._stage("partition", "4_partition", partition.VERSION, identity, self.scores(), work)

    def anchor(self) -> StageFolder:
        """The frozen estimates with their fingerprint."""

        def work(stage: StageFolder) -> None:
            found = self.partition().manifest
            facts = freeze(
                stage.path,
                self.partition().rows(PartitionEstimate),
                self._fingerprint(),
                reward_range=self.task.reward_range,
                binary=found["binary"],
                evidence={name: found.get(name) for name in ("null_test", "coverage", "regressor", "budget")},
                regressor=self.partition().path / "regressor.npz" if found["regressor"] else None,
            )
            stage.finish(anchor=facts)

        return self._stage("anchor", "5_anchor", ANCHOR_VERSION, {}, {"partition": self.partition()}, work)

    def _features(self, prompts: list[Prompt]) -> PromptFeatures:
        """What the regressor knows of a prompt: the frozen reference's states."""
        tokenizer, sampling = self._tokenizer(), self.recipe.sampling
        ids = [encode_prompt(tokenizer, prompt.prompt, sampling) for prompt in prompts]
        features = prompt_features(load_model(self._path("reference")), ids)
        by_prompt = dict(zip((prompt.prompt_id for prompt in prompts), features, strict=True))
        return PromptFeatures(by_prompt, features_fingerprint(self._fingerprint()))

    def training(self) -> list[StageFolder]:
        """One folder per method; a baseline's does not depend on the anchor."""
        config = self.recipe.training
        return [self.train(method, config, f"6_training/{method}") for method in config.methods]

    def train(self, method: str, config: TrainingConfig, folder: str) -> StageFolder:
        """Train one method under given settings into a folder of its own."""

        def work(stage: StageFolder) -> None:
            anchor = Anchor.load(self.anchor().path) if METHODS[method].anchor else None
            prompts = self._prompts("train")
            offline = scoring.decided(self._rows(self.scores(), prompts)) if config.reads_trajectories(method) else []
            reference = self._path("reference")
            training.run_training(stage, method, config, sampling, self.task, prompts, reference, anchor, offline)

        sampling = self.recipe.sampling
        identity = {"training": config.method_identity(method), "sampling": sampling.identity()}
        identity |= {"reward": self.task.reward_fingerprint} | self._model_identity("reference")
        inputs = self._model_inputs()
        inputs |= {"anchor": self.anchor()} if METHODS[method].anchor else {}
        inputs |= self.scores() if config.reads_trajectories(method) else {}
        return self._stage("training", folder, training.VERSION, identity, inputs, work, by="launch")

    def evaluation(self) -> list[StageFolder]:
        """One folder per model: the reference and every trained policy."""
        trained = dict(zip(self.recipe.training.methods, self.training(), strict=True))
        models = {"reference": None} | trained
        return [self.evaluate(name, folder, f"7_evaluation/{name}") for name, folder in models.items()]

    def evaluate(
        self, name: str, trained: StageFolder | None, folder: str, splits: tuple[str, ...] = EVALUATED_SPLITS
    ) -> StageFolder:
        """Sample and judge one model, the reference where none is trained, on some splits into a folder of its own."""

        def work(stage: StageFolder) -> None:
            reference = load_model(self._path("reference"))
            model = load_model(trained.path / "model") if trained else reference
            prompts = self._prompts(*splits)
            evaluation.run_evaluation(
                stage, name, config, sampling, self.task, prompts, model, reference, self._tokenizer()
            )

        config, sampling = self.recipe.evaluation, self.recipe.sampling
        identity = {"evaluation": config.identity(), "sampling": sampling.identity()}
        identity |= {} if splits == EVALUATED_SPLITS else {"splits": list(splits)}
        identity |= {"reward": self.task.reward_fingerprint} | self._model_identity("reference")
        inputs = self._model_inputs() | ({"training": trained} if trained else {})
        return self._stage("evaluation", folder, evaluation.VERSION, identity, inputs, work, by="parts")

    def report(self) -> StageFolder:
        """Tables, figures and the page."""

        def work(stage: StageFolder) -> None:
            report.run_report(
                stage,
                self.recipe,
                prompts=self._prompts("train", "validation", "heldout"),
                anchor=Anchor.load(self.anchor().path),
                training=dict(zip(self.recipe.training.methods, self.training(), strict=True)),
                records=[row for folder in self.evaluation() for row in folder.rows(EvaluationRecord)],
                parity=_parity(self.scores()),
                finished=list(self._done.values()),
            )

        inputs = {
            stage.name: stage
            for stage in (*self.scores().values(), self.anchor(), *self.training(), *self.evaluation())
        }
        identity = {"ks": list(self.recipe.evaluation.ks)}
        return self._stage("report", "8_report", report.VERSION, identity, inputs, work)

    def _stage(
        self,
        name: str,
        folder: str,
        version: int,
        identity: dict[str, Any],
        inputs: dict[str, StageFolder],
        work: Work,
        by: Literal["one", "parts", "launch"] = "one",
    ) -> StageFolder:
        """Open a stage once per pipeline; do its work unless it is done, or refuse where it may not.

        Where several processes run the pipeline, they share the work as ``by`` says: one does it while the others wait,
        all make parts, or all processes of one launch train together.
        """
        if folder in self._done:
            return self._done[folder]
        stage = StageFolder(self.run_dir, folder, version=version, identity=identity, inputs=inputs)
        # A worker outside a launch may finish the stage while its processes look, one before and one after.
        if processes.first_says(stage.finished) if by == "launch" else stage.finished:
            self._say(f"{folder}: finished earlier, nothing changed")
        elif name not in self._may_work:
            raise NotFinished(
                f"stage {name} has no finished output for this recipe",
                where=str(stage.path),
                fix=f"run 'disa {name} RECIPE' first, or 'disa run RECIPE' for all stages",
            )
        else:
            SHARING[by](stage, work, lambda: self._say(f"{folder}: another process works here, waiting for it"))
            self._say(f"{folder}: done in {stage.manifest['seconds']:.1f} s")
        self._done[folder] = stage
        return stage

    def _prompts(self, *splits: str) -> list[Prompt]:
        by_split: dict[str, list[Prompt]] = {split: [] for split in splits}
        for row in self.tasks().rows(Prompt):
            if row.split in by_split:
                by_split[row.split].append(row)
        return [row for rows in by_split.values() for row in rows]

    def _path(self, role: str) -> Path | str:
        """Folder or hub id of the reference or the proposal; without a proposal, the reference."""
        if self.recipe.warmup is None:
            return (self.recipe.models.proposal if role == "proposal" else None) or self.recipe.models.reference
        role = role if self.recipe.warmup.proposal else "reference"
        return self.warmup().path / role

    def _draw(self, stage: StageFolder, prompts: list[Prompt], plan: proposals.Plan | None = None) -> None:
        """Draw trajectories by the recipe's engines; models that an engine runs elsewhere are not loaded here."""
        config, sampling, tokenizer = self.recipe.proposals, self.recipe.sampling, self._tokenizer()
        paths = {role: self._path(role) for role in ("reference", "proposal")}
        engines = make_engines(config, sampling, prompts, paths, tokenizer)
        loaded = {path: load_model(path) for role, path in paths.items() if role not in engines}
        models = {role: loaded[path] for role, path in paths.items() if role not in engines}
        proposals.run_proposals(stage, config, sampling, prompts, models, tokenizer, plan, engines)

    def _models(self) -> dict[str, Any]:
        """Models to score with: the proposal is missing where only a server or a file speaks for it."""
        reference = load_model(self._path("reference"))
        given = self.recipe.warmup.proposal if self.recipe.warmup else self.recipe.models.proposal
        if self.recipe.proposals.drawn_elsewhere and not given:
            return {"reference": reference}
        same = self._path("proposal") == self._path("reference")
        return {"reference": reference, "proposal": reference if same else load_model(self._path("proposal"))}

    def _tokenizer(self) -> Any:
        return load_tokenizer(self._path("reference"))

    def _model_inputs(self) -> dict[str, StageFolder]:
        inputs = {"tasks": self.tasks()}
        return inputs | ({"warmup": self.warmup()} if self.recipe.warmup else {})

    def _model_identity(self, role: str) -> dict[str, str]:
        """What given models are: a folder's files, or a hub id; warmed-up ones enter as an input stage."""
        if self.recipe.warmup:
            return {}
        paths = {r: self._path(r) for r in dict.fromkeys(("reference", role))}
        return {r: self._digest(str(p)) if Path(p).is_dir() else str(p) for r, p in paths.items()}

    def _digest(self, folder: str) -> str:
        # Read once: a comparison asks for it with every policy.
        if folder not in self._digests:
            self._digests[folder] = _folder_digest(Path(folder))
        return self._digests[folder]

    def _fingerprint(self) -> Fingerprint:
        return take_fingerprint(
            load_model(self._path("reference")),
            self._tokenizer(),
            self.recipe.sampling,
            reward=self.task.reward_fingerprint,
            inverse_temperature=self.recipe.training.inverse_temperature,
            task=self.task.fingerprint,
        )


def _parity(folders: dict[str, StageFolder]) -> dict[str, Any]:
    """The parity report of the first draws, with those of the rounds beside it."""
    found = {label: folder.manifest["parity"] for label, folder in folders.items()}
    first = found.pop("scoring")
    sources = {f"{label} {s}": r[s] for label, r in found.items() for s in budget.SOURCES if s in r}
    return first | sources


def _folder_digest(folder: Path) -> str:
    hasher = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        hasher.update(path.name.encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]
