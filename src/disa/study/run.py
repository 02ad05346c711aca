"""The units of a study, each an ordinary run directory.

``RUN/study/truth`` holds the reference draws that log Z is measured against, ``RUN/study/strengths/NAME`` a proposal
and its pool, ``.../beta-B/n-N`` a cell: its ``error``, and one run directory for every seed of its policies.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from disa.errors import DisaError
from disa.partition.draws import trajectory_columns
from disa.pipeline import Pipeline
from disa.proposals.config import ProposalsConfig
from disa.recipe import ModelsConfig, Recipe
from disa.runs.cells import failed_cells_error, share_cells
from disa.runs.folders import StageFolder, write_json
from disa.runs.locks import exclusive
from disa.runs.records import Prompt, ScoredTrajectory
from disa.scoring.run import decided_rows
from disa.study.cell_errors import HeldoutDraws, cell_error, in_block, truth_from_reference, whole_blocks
from disa.study.config import read_study
from disa.warmup.run import train_on_demonstrations

PROPOSAL_VERSION = BLOCK_VERSION = ERROR_VERSION = 1


@dataclasses.dataclass(frozen=True)
class StudyCell:
    """A point of the grid."""

    strength: str
    beta: float
    trajectories: int

    @property
    def folder(self) -> str:
        """Where its results lie in the study's folder."""
        return f"strengths/{self.strength}/beta-{self.beta:g}/n-{self.trajectories}"


class Study:
    """One recipe's study.

    Raises DisaError where the recipe has no such sections, asks for a regressor, brings its proposal, or its blocks
    would not be alike.
    """

    def __init__(self, recipe: Recipe, *, say: Callable[[str], None]) -> None:
        config = read_study(recipe, recipe.run_dir)
        if recipe.warmup is None:
            fix = "strengths are made by supervised training"
            raise DisaError("the recipe has no warmup section", where=recipe.run_dir, fix=fix)
        if recipe.partition.regressor:
            raise DisaError(
                "partition.regressor is true, but a study measures every prompt's own estimate",
                where="recipe, field partition.regressor",
                fix="set it to false",
            )
        if recipe.proposals.rounds:
            kind = "adaptive" if recipe.proposals.adaptive else "resample"
            raise DisaError(
                f"proposals.{kind} is set, but a study's replicates are blocks of equally many draws",
                where=f"recipe, field proposals.{kind}",
                fix="set it to null",
            )
        if recipe.proposals.drawn_elsewhere:
            raise DisaError(
                f"proposals.engine {recipe.proposals.engine} brings a proposal of its own, but a study makes its own",
                where="recipe, field proposals.engine",
                fix="use transformers or vllm",
            )
        self.recipe, self.config, self.say = recipe, config, say
        self.folder = Path(recipe.run_dir) / "study"
        self.base = Pipeline(recipe, say=say)
        self.evaluations: dict[tuple[StudyCell, int], list[StageFolder]] = {}
        """Of the policies that are there, by cell and seed, the reference's first."""
        alpha = recipe.proposals.reference_share
        if uneven := [n for n in self.config.trajectories if abs(alpha * n - round(alpha * n)) > 1e-9]:
            raise DisaError(
                f"{uneven[0]} trajectories of which a share of {alpha:g} comes from the reference make no whole number",
                where="recipe, field study.trajectories",
                fix="choose sizes for which proposals.reference_share gives whole numbers of draws",
            )

    def cells(self) -> list[StudyCell]:
        """Every cell of the grid."""
        config = self.config
        axes = config.strengths, config.inverse_temperatures, config.trajectories
        return [StudyCell(*point) for point in itertools.product(*axes)]

    def policy_cells(self) -> list[StudyCell]:
        """Cells that policies are trained in, in the order of the grid."""
        wanted = {
            StudyCell(*point)
            for block in self.config.policies
            for point in itertools.product(block.strengths, block.inverse_temperatures, block.trajectories)
        }
        return [cell for cell in self.cells() if cell in wanted]

    def blocks(self, cell: StudyCell) -> int:
        """Replicates of a cell: whole blocks in the pool of one held-out prompt."""
        return whole_blocks(self._proposals(cell.strength).counts("heldout"), self._counts(cell))

    def run(self) -> None:
        """Bring every unit to its finished state, beside other processes that do the same."""
        self.base.warmup()
        strengths = {f"strengths/{name}": functools.partial(self.measure, name) for name in self.config.strengths}
        self.share({"truth": self.measure_truth, **strengths})
        policies = itertools.product(self.policy_cells(), range(self.config.seeds))
        self.share({f"{c.folder}/seed-{seed}": functools.partial(self.train, c, seed) for c, seed in policies})

    def share(self, units: Mapping[str, Callable[[], None]]) -> None:
        """Finish units together with other processes.

        Raises DisaError where some failed; the others are finished.
        """
        if failed := share_cells(lambda: units, self.say):
            raise failed_cells_error(failed, "study")

    def measure_truth(self) -> None:
        """Draw the truth's trajectories, and the reference's evaluation samples."""
        with exclusive(self.folder / "truth"):
            self.truth.scoring()
            self.truth.evaluation()

    def measure(self, strength: str) -> None:
        """Make a proposal, draw its pool, and measure its cells."""
        with exclusive(self.folder / "strengths" / strength):
            self.pool(strength).scoring()
            with exclusive(self.folder / "truth"):
                self.truth.scoring()
            for cell in self.cells():
                if cell.strength == strength:
                    self.error(cell)

    def train(self, cell: StudyCell, seed: int) -> None:
        """Train and evaluate one seed's policies of a cell."""
        with exclusive(self.folder / cell.folder / f"seed-{seed}"):
            self.evaluations[cell, seed] = self.policies(cell, seed).evaluation()

    @functools.cached_property
    def truth(self) -> Pipeline:
        """Reference draws of the held-out prompts, with random numbers that no pool shares, and reference samples."""
        proposals = self.recipe.proposals.model_copy(
            update={
                "per_prompt": 1,  # log Z of training prompts is not measured, and none is not allowed
                "per_heldout_prompt": self.config.truth,
                "reference_share": 1.0,
                "seed": self.recipe.proposals.seed + 1,
            }
        )
        training = self.recipe.training.model_copy(update={"methods": ()})
        return self._pipeline("truth", {}, None, proposals=proposals, training=training)

    @functools.lru_cache  # noqa: B019, a study lives as long as its process
    def pool(self, strength: str) -> Pipeline:
        """Trajectories of one strength, for all cells."""
        proposal = self._proposal(strength)
        model = None if proposal is None else proposal.path / "model"
        return self._pipeline(f"strengths/{strength}", {}, model, proposals=self._proposals(strength))

    def error(self, cell: StudyCell) -> StageFolder:
        """Measure the error of log Z in one cell."""
        pool, beta = self.pool(cell.strength), cell.beta
        config, reward_range = self.recipe.partition, self.base.task.reward_range
        stage = StageFolder(
            self.folder,
            f"{cell.folder}/error",
            version=ERROR_VERSION,
            identity={
                "partition": config.identity(),
                "inverse_temperature": beta,
                "trajectories": cell.trajectories,
                "reward_range": list(reward_range),
            },
            inputs={"scoring": pool.scoring(), "truth": self.truth.scoring()},
        )
        if not stage.finished:
            stage.begin()
            truth = truth_from_reference(self._heldout("truth").columns, beta, reward_range)
            draws, counts = self._heldout(cell.strength), self._counts(cell)
            found = cell_error(draws, counts, self.blocks(cell), truth, config, beta, reward_range)
            write_json(stage.path / "error.json", found)
            stage.finish()
            self.say(f"{stage.name}: RMSE of log Z {found['rmse']['value']:.3f} nats")
        return stage

    def policies(self, cell: StudyCell, seed: int) -> Pipeline:
        """One seed's policies of a cell: the recipe at the cell's beta, on the seed's block of the pool."""
        pool = self.pool(cell.strength)
        training = self.recipe.training.model_copy(
            update={
                "methods": self.config.methods,
                "inverse_temperature": cell.beta,
                "seed": self.recipe.training.seed + seed,
            }
        )
        folder = f"{cell.folder}/seed-{seed}"
        finished = {
            "2_proposals": pool.proposals(),
            "3_scoring": self._block(cell, seed, folder),
            "7_evaluation/reference": self.truth.evaluation()[0],
        }
        proposal = pool.recipe.models.proposal
        return self._pipeline(folder, finished, Path(proposal) if proposal else None, training=training)

    def _block(self, cell: StudyCell, number: int, folder: str) -> StageFolder:
        """The rows of one block of the pool, as a scoring stage of their own."""
        scoring, counts = self.pool(cell.strength).scoring(), self._counts(cell)
        stage = StageFolder(
            self.folder / folder,
            "3_scoring",
            version=BLOCK_VERSION,
            identity={"block": number, "counts": counts},
            inputs={"pool": scoring},
        )
        if not stage.finished:
            stage.begin()
            rows = scoring.stored_rows(ScoredTrajectory)
            kept = [row for row in rows if in_block(row.draw, row.source == "reference", number, counts)]
            stage.write_part("block", kept, ScoredTrajectory)
            stage.finish(trajectories=len(kept), parity=scoring.manifest["parity"])
        return stage

    def _proposal(self, strength: str) -> StageFolder | None:
        """The model of a strength, None where it is the reference."""
        config, run, sampling = self.recipe.warmup, self.config.strengths[strength], self.recipe.sampling
        if run.steps == 0:
            return None
        assert config is not None  # a study's recipe has a warm-up
        identity = {"strength": run.identity(), "warmup": config.identity(), "sampling": sampling.identity()}
        inputs = {"tasks": self.base.tasks(), "warmup": self.base.warmup()}
        name = f"strengths/{strength}/proposal"
        stage = StageFolder(self.folder, name, version=PROPOSAL_VERSION, identity=identity, inputs=inputs)
        if not stage.finished:
            stage.begin()
            prompts = [row for row in self.base.tasks().rows(Prompt) if row.split == "warmup"][: run.prompts]
            start = self.base.warmup().path / "reference"
            train_on_demonstrations(
                stage.path, "model", run.steps, run.noise, config, self.base.task, prompts, sampling, start=start
            )
            stage.finish()
            self.say(f"{name}: done in {stage.manifest['seconds']:.1f} s")
        return stage

    def _proposals(self, strength: str) -> ProposalsConfig:
        """Draws of a strength's pool: for training prompts, as many as its policies' blocks need."""
        sizes = [cell.trajectories for cell in self.policy_cells() if cell.strength == strength]
        update: dict[str, Any] = {
            "per_prompt": self.config.seeds * max(sizes, default=1),
            "per_heldout_prompt": self.config.pool,
        }
        if self.config.strengths[strength].steps == 0:
            # Estimates would be the same, but intervals allow for weights up to 1/alpha, which these draws cannot have.
            update["reference_share"] = 1.0
        return self.recipe.proposals.model_copy(update=update)

    def _counts(self, cell: StudyCell) -> dict[str, int]:
        """Draws of each source in a block of a cell, the same for every prompt."""
        per_prompt = {"per_heldout_prompt": cell.trajectories}
        return self._proposals(cell.strength).model_copy(update=per_prompt).counts("heldout")

    @functools.lru_cache  # noqa: B019, as above
    def _heldout(self, name: str) -> HeldoutDraws:
        """Scored draws of the held-out prompts of the truth or of a strength."""
        pipeline = self.truth if name == "truth" else self.pool(name)
        ids = [row.prompt_id for row in self.heldout()]
        wanted = set(ids)
        rows = [row for row in decided_rows(pipeline.scoring().thin_rows(ScoredTrajectory)) if row.prompt_id in wanted]
        return HeldoutDraws(trajectory_columns(ids, rows), np.array([row.draw for row in rows]))

    def true_log_z(self, beta: float) -> dict[str, float]:
        """Log Z of the held-out prompts from the truth's draws, nats."""
        truth = truth_from_reference(self._heldout("truth").columns, beta, self.base.task.reward_range)
        return dict(zip((row.prompt_id for row in self.heldout()), truth.log_z.tolist(), strict=True))

    def heldout(self) -> list[Prompt]:
        """Held-out prompts, in order."""
        return [row for row in self.base.tasks().rows(Prompt) if row.split == "heldout"]

    def _pipeline(
        self, folder: str, finished: Mapping[str, StageFolder], proposal: Path | None, **sections: Any
    ) -> Pipeline:
        """Stages of the recipe in a folder of the study, with its prompts and reference, and other sections."""
        reference = str(self.base.warmup().path / "reference")
        models = ModelsConfig(reference=reference, proposal=None if proposal is None else str(proposal))
        changed = {"run_dir": str(self.folder / folder), "warmup": None, "study": None, "models": models} | sections
        return Pipeline(
            self.recipe.model_copy(update=changed),
            say=lambda line: self.say(f"{folder}/{line}"),
            finished={"1_tasks": self.base.tasks(), **finished},
        )
