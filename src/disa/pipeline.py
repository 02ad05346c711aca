"""The pipeline: which stage reads what, in one place.

tasks -> (warmup) -> proposals -> scoring -> partition -> anchor -> training -> evaluation -> report

Each method opens its stage's folder with the fingerprint of everything the stage depends on, skips
it where that is already done, and otherwise does the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disa.anchor import Anchor
from disa.anchor.anchor import VERSION as ANCHOR_VERSION
from disa.anchor.anchor import freeze
from disa.engine import load_model, load_tokenizer
from disa.errors import DisaError
from disa.evaluation import run as evaluation
from disa.partition import stage as partition
from disa.partition.features import features_fingerprint, prompt_features
from disa.partition.regression import PromptFeatures
from disa.proposals import run as proposals
from disa.provenance import Fingerprint, chat_template_digest, tokenizer_digest, weights_digest
from disa.recipe import Recipe
from disa.records import EvaluationRecord, PartitionEstimate, Prompt, ScoredTrajectory, Trajectory
from disa.report import stage as report
from disa.rundir import StageFolder, exclusive, write_json
from disa.sampling import encode_prompt, stop_token_ids
from disa.scoring import run as scoring
from disa.stages import STAGES
from disa.tasks import SPLITS, make_task
from disa.training import run as training
from disa.training.methods import METHODS
from disa.warmup import run as warmup

TASKS_VERSION = 1


class Pipeline:
    """One recipe's stages.

    Parameters
    ----------
    recipe : Recipe
    may_work : collection of str
        Stages that may do work; any other must have finished already.
    say : callable
        Receives one line per stage.
    """

    def __init__(self, recipe: Recipe, *, may_work: tuple[str, ...] = STAGES, say: Callable[[str], None]) -> None:
        self.recipe, self.run_dir, self._say, self._may_work = recipe, Path(recipe.run_dir), say, may_work
        self.task = make_task(recipe.tasks)
        self._done: dict[str, StageFolder] = {}

    def run(self, until: str = STAGES[-1]) -> StageFolder:
        """Bring every stage up to ``until`` to its finished state; returns the last one's folder."""
        with exclusive(self.run_dir):
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
            warmup.run_warmup(stage, config, self.task, self._prompts("warmup"), law)

        config, law = self.recipe.warmup, self.recipe.sampling
        identity = {"warmup": config.identity(), "sampling": law.identity()}
        return self._stage("warmup", "warmup", warmup.VERSION, identity, {"tasks": self.tasks()}, work)

    def proposals(self) -> StageFolder:
        """Offline trajectories."""

        def work(stage: StageFolder) -> None:
            prompts = self._prompts("train", "validation", "heldout")
            proposals.run_proposals(stage, config, law, prompts, self._models(), self._tokenizer())

        config, law = self.recipe.proposals, self.recipe.sampling
        identity = {"proposals": config.identity(), "sampling": law.identity()} | self._model_identity("proposal")
        return self._stage("proposals", "2_proposals", proposals.VERSION, identity, self._model_inputs(), work)

    def scoring(self) -> StageFolder:
        """Log-probabilities under both models, and rewards."""

        def work(stage: StageFolder) -> None:
            prompts = self._prompts("train", "validation", "heldout")
            rows = self.proposals().rows(Trajectory)
            scoring.run_scoring(stage, config, law, self.task, prompts, rows, self._models(), self._tokenizer())

        config, law = self.recipe.scoring, self.recipe.sampling
        identity = {"scoring": config.identity(), "reward": self.task.reward_fingerprint}
        return self._stage("scoring", "3_scoring", scoring.VERSION, identity, {"proposals": self.proposals()}, work)

    def partition(self) -> StageFolder:
        """Estimates of log Z."""

        def work(stage: StageFolder) -> None:
            prompts = self._prompts("train", "validation", "heldout")
            rows = scoring.decided(self.scoring().rows(ScoredTrajectory))
            features = self._features(prompts) if config.regressor else None
            partition.run_partition(stage, config, beta, self.task.reward_range, prompts, rows, features)

        config, beta = self.recipe.partition, self.recipe.training.inverse_temperature
        identity = {
            "partition": config.identity(),
            "inverse_temperature": beta,
            "reward_range": list(self.task.reward_range),
        }
        return self._stage("partition", "4_partition", partition.VERSION, identity, {"scoring": self.scoring()}, work)

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
                evidence={name: found[name] for name in ("null_test", "coverage", "regressor")},
                regressor=self.partition().path / "regressor.npz" if found["regressor"] else None,
            )
            stage.finish(anchor=facts)

        return self._stage("anchor", "5_anchor", ANCHOR_VERSION, {}, {"partition": self.partition()}, work)

    def _features(self, prompts: list[Prompt]) -> PromptFeatures:
        """What the regressor knows of a prompt: the frozen reference's states."""
        tokenizer, law = self._tokenizer(), self.recipe.sampling
        ids = [encode_prompt(tokenizer, prompt.prompt, law) for prompt in prompts]
        features = prompt_features(load_model(self._path("reference")), ids)
        by_prompt = dict(zip((prompt.prompt_id for prompt in prompts), features, strict=True))
        return PromptFeatures(by_prompt, features_fingerprint(self._fingerprint()))

    def training(self) -> list[StageFolder]:
        """One folder per method; a baseline's does not depend on the anchor."""
        return [self._train(method) for method in self.recipe.training.methods]

    def _train(self, method: str) -> StageFolder:
        def work(stage: StageFolder) -> None:
            anchor = Anchor.load(self.anchor().path) if METHODS[method].anchor else None
            prompts = self._prompts("train")
            wanted = {p.prompt_id for p in prompts}
            rows = self.scoring().rows(ScoredTrajectory) if config.reads_trajectories(method) else []
            offline = [row for row in scoring.decided(rows) if row.prompt_id in wanted]
            reference = self._path("reference")
            training.run_training(stage, method, config, law, self.task, prompts, reference, anchor, offline)

        config, law = self.recipe.training, self.recipe.sampling
        identity = {"training": config.method_identity(method), "sampling": law.identity()}
        identity |= {"reward": self.task.reward_fingerprint} | self._model_identity("reference")
        inputs = self._model_inputs()
        inputs |= {"anchor": self.anchor()} if METHODS[method].anchor else {}
        inputs |= {"scoring": self.scoring()} if config.reads_trajectories(method) else {}
        return self._stage("training", f"6_training/{method}", training.VERSION, identity, inputs, work)

    def evaluation(self) -> list[StageFolder]:
        """One folder per model: the reference and every trained policy."""
        folders = dict(zip(self.recipe.training.methods, self.training(), strict=True))
        return [self._evaluate("reference", None), *(self._evaluate(m, f) for m, f in folders.items())]

    def _evaluate(self, name: str, trained: StageFolder | None) -> StageFolder:
        def work(stage: StageFolder) -> None:
            reference = load_model(self._path("reference"))
            model = load_model(trained.path / "model") if trained else reference
            prompts = self._prompts("heldout", "train")
            evaluation.run_evaluation(stage, name, config, law, self.task, prompts, model, reference, self._tokenizer())

        config, law = self.recipe.evaluation, self.recipe.sampling
        identity = {"evaluation": config.identity(), "sampling": law.identity()}
        identity |= {"reward": self.task.reward_fingerprint} | self._model_identity("reference")
        inputs = self._model_inputs() | ({"training": trained} if trained else {})
        return self._stage("evaluation", f"7_evaluation/{name}", evaluation.VERSION, identity, inputs, work)

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
                parity=self.scoring().manifest["parity"],
                finished=list(self._done.values()),
            )

        inputs = {stage.name: stage for stage in (self.scoring(), self.anchor(), *self.training(), *self.evaluation())}
        identity = {"ks": list(self.recipe.evaluation.ks)}
        return self._stage("report", "8_report", report.VERSION, identity, inputs, work)

    def _stage(
        self,
        name: str,
        folder: str,
        version: int,
        identity: dict[str, Any],
        inputs: dict[str, StageFolder],
        work: Callable[[StageFolder], None],
    ) -> StageFolder:
        """Open a stage once per pipeline; do its work unless it is done, or refuse where it may not."""
        if folder in self._done:
            return self._done[folder]
        stage = StageFolder(self.run_dir, folder, version=version, identity=identity, inputs=inputs)
        if stage.finished:
            self._say(f"{folder}: finished earlier, nothing changed")
        elif name not in self._may_work:
            raise DisaError(
                f"stage {name} has no finished output for this recipe",
                where=str(stage.path),
                fix=f"run 'disa {name} RECIPE' first, or 'disa run RECIPE' for all stages",
            )
        else:
            stage.begin()
            work(stage)
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

    def _models(self) -> dict[str, Any]:
        reference = load_model(self._path("reference"))
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
        return {r: _folder_digest(Path(p)) if Path(p).is_dir() else str(p) for r, p in paths.items()}

    def _fingerprint(self) -> Fingerprint:
        reference, tokenizer, law = load_model(self._path("reference")), self._tokenizer(), self.recipe.sampling
        return Fingerprint(
            reference=weights_digest(reference),
            tokenizer=tokenizer_digest(tokenizer),
            chat_template=chat_template_digest(
                tokenizer, conversational=law.conversational, system_prompt=law.system_prompt
            ),
            temperature=law.temperature,
            max_completion_length=law.max_completion_length,
            stop_token_ids=stop_token_ids(reference, tokenizer),
            reward=self.task.reward_fingerprint,
            inverse_temperature=self.recipe.training.inverse_temperature,
            task=self.task.fingerprint,
        )


def _folder_digest(folder: Path) -> str:
    hasher = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        hasher.update(path.name.encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]
