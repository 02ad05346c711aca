"""The frozen estimates with their fingerprint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from disa.anchor.frozen_files import (
    PROBE_BOUND,
    PROBES,
    REGRESSOR,
    VERSION,
    check_frozen,
    check_regressor,
    freeze,
)
from disa.anchor.probes import Probe, prompt_digest
from disa.errors import DisaError
from disa.runs.files import file_digest
from disa.runs.folders import read_json
from disa.runs.parquet_rows import read_rows
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory

# How to make each field agree again, shown when it does not.
_FIXES = {
    "reference": "train against the weights the anchor was estimated for and their config.json, or make a new anchor",
    "tokenizer": "use the tokenizer saved beside the reference",
    "chat_template": "use the reference's chat template, and the anchor's system prompt, or estimate a new anchor",
    "tools": "give tools, environment_factory, rollout_func and max_tool_calling_iterations as to calibrate",
    "temperature": "set sampling.temperature (DISAConfig.temperature) to the anchor's value",
    "max_completion_length": "set max_completion_length to the anchor's value",
    "stop_token_ids": "restore the generation config's eos_token_id and the tokenizer's eos_token",
    "reward": "use the reward the anchor was estimated with, or estimate a new anchor for this one",
    "inverse_temperature": "set inverse_temperature to the anchor's value, or use anchor.at_inverse_temperature(...)",
    "task": "regenerate the tasks, proposals and anchor with this version of the task",
}


@dataclasses.dataclass(frozen=True)
class Anchor:
    """log Z per prompt, frozen.

    Parameters
    ----------
    estimates : mapping of prompt id to PartitionEstimate
        Read-only.
    fingerprint : Fingerprint
        What the estimates depend on.
    reward_range : tuple of float
        Declared smallest and largest reward; log Z lies within beta times it.
    binary : bool
        Whether every observed reward was one of the two ends of the range. Then q does not depend
        on beta, and log Z at another beta follows exactly from it.
    path : Path or None
        Folder it was loaded from.
    evidence : mapping
        What the partition stage found beside the estimates: null test, coverage, the regressor's report.
    version : int
        Of its fingerprint. An anchor of another version can be read and inspected, and is refused for training.
    probes : mapping of prompt id to Probe
        Token ids of the prompts as digests, and some completions to try a reference on. Prompts whose log Z was
        predicted, and anchors made in memory, have none.
    probe_bound : float
        Largest mean difference per token, in nats, between a probe's log pi_ref and the one computed anew.
    """

    estimates: Mapping[str, PartitionEstimate]
    fingerprint: Fingerprint
    reward_range: tuple[float, float]
    binary: bool
    path: Path | None = None
    key_columns: tuple[str, ...] | None = None
    """Columns of a data set that, with its prompts, make the prompts' ids; None where rows bring their id."""
    chat_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    """Further arguments that the chat template was given."""
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    version: int = VERSION
    probes: Mapping[str, Probe] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    probe_bound: float = PROBE_BOUND

    @classmethod
    def load(cls, path: str | Path) -> Anchor:
        """Read the anchor of a folder or of a run directory, and check that it is whole and unaltered.

        Raises
        ------
        DisaError
            Where the folder is missing, not an anchor, or was changed after it was frozen, or where its regressor
            belongs to other features than its fingerprint says.
        """
        path = Path(path)
        path = path / "5_anchor" if (path / "5_anchor").is_dir() else path
        manifest = read_json(path / "manifest.json", missing="no anchor here").get("anchor")
        fields = {field.name for field in dataclasses.fields(Fingerprint)}
        whole = {"fingerprint", "reward_range", "binary", "digest"}
        if not (
            isinstance(manifest, dict)
            and whole <= manifest.keys()
            and isinstance(manifest["fingerprint"], dict)
            and fields == manifest["fingerprint"].keys()
        ):
            raise DisaError("not an anchor's manifest", where=str(path / "manifest.json"), fix="give RUN/5_anchor")
        rows = read_rows(path / "anchor.parquet", PartitionEstimate)
        found = file_digest(path / "anchor.parquet")[:16]
        if found != manifest["digest"]:
            raise DisaError(
                f"anchor.parquet was changed after it was frozen (digest {found}, manifest says {manifest['digest']})",
                where=str(path),
                fix="rerun the anchor stage; a frozen log Z is never edited",
            )
        fingerprint = Fingerprint.from_dict(manifest["fingerprint"])
        check_regressor(path / REGRESSOR, manifest.get("regressor"), fingerprint)
        version, probes = manifest.get("version", 1), []
        if version >= VERSION:
            check_frozen(path / PROBES, manifest.get("probes"))
            probes = read_rows(path / PROBES, Probe)
        return cls(
            estimates=MappingProxyType({row.prompt_id: row for row in rows}),
            fingerprint=fingerprint,
            reward_range=tuple(manifest["reward_range"]),
            binary=manifest["binary"],
            path=path,
            chat_template_kwargs=manifest.get("chat_template_kwargs", {}),
            key_columns=None if manifest.get("key_columns") is None else tuple(manifest["key_columns"]),
            evidence=MappingProxyType(manifest.get("evidence", {})),
            version=version,
            probes=MappingProxyType({row.prompt_id: row for row in probes}),
            probe_bound=manifest.get("probe_bound", PROBE_BOUND),
        )

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None, token: str | None = None) -> Anchor:
        """Download the anchor of a data set repository, and check it as :meth:`load` does.

        Parameters
        ----------
        repo_id : str
            ``owner/name``.
        revision : str, optional
            Branch, tag or commit; a commit cannot change.
        token : str, optional
            By default the one that ``hf auth login`` stored.

        Raises
        ------
        DisaError
            Where it cannot be had, or is not an anchor, or was changed after it was frozen.
        """
        from disa.anchor.hub import pull_anchor

        return cls.load(pull_anchor(repo_id, revision=revision, token=token))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        reference: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload estimates, fingerprint, probes, regressor and a card as a data set; trajectories stay here.

        The probes hold token ids of some completions, and the estimates the ids of prompts, not their text.

        Parameters
        ----------
        repo_id : str
            ``owner/name``; made where it is missing.
        reference : str, optional
            Hub id of the reference, for the card: the anchor itself has a digest of its weights.
        private, revision, token, commit_message
            As in ``huggingface_hub``.

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        DisaError
            Where the anchor is of another version, or the hub refuses.
        """
        from disa.anchor.hub import push_anchor

        options = {"private": private, "revision": revision, "token": token, "commit_message": commit_message}
        return push_anchor(self, repo_id, reference=reference, **options)

    def save(self, path: str | Path) -> None:
        """Write the anchor, as it is now, into a folder that :meth:`load` reads.

        Raises
        ------
        DisaError
            Where the anchor is of another version.
        """
        self._check_version()
        regressor = None if self.path is None else self.path / REGRESSOR
        freeze(
            path,
            list(self.estimates.values()),
            self.fingerprint,
            reward_range=self.reward_range,
            binary=self.binary,
            probes=list(self.probes.values()),
            probe_bound=self.probe_bound,
            evidence=self.evidence,
            key_columns=self.key_columns,
            chat_template_kwargs=self.chat_template_kwargs,
            regressor=regressor if regressor and regressor.is_file() else None,
        )

    def verify(self, fingerprint: Fingerprint) -> None:
        """Refuse use under any other conditions than those the estimates hold for.

        Raises
        ------
        DisaError
            Naming the first field that differs, the anchor's value, the other value, and the fix; or where the
            anchor's fingerprint is of another version.
        """
        self._check_version()
        for name, expected, found in self.fingerprint.differences(fingerprint):
            raise DisaError(
                f"anchor does not fit: {name} is {found}, the anchor was estimated for {expected}",
                where=str(self.path or "anchor"),
                fix=_FIXES[name],
            )

    def _check_version(self) -> None:
        if self.version != VERSION:
            raise DisaError(
                f"anchor of version {self.version}, expected {VERSION}: its fingerprint was taken in another way and "
                "cannot be compared",
                where=str(self.path or "anchor"),
                fix="run the anchor stage again (disa run RECIPE --until anchor); trajectories and scores are kept",
            )

    def verify_prompts(self, prompt_ids: Mapping[str, Sequence[int]]) -> None:
        """Refuse prompts whose token ids are not those that log Z was estimated for.

        Parameters
        ----------
        prompt_ids : mapping of prompt id to token ids
            As they will be trained on. Prompts that the anchor has no digest of (:attr:`probes`) pass.

        Raises
        ------
        DisaError
            Naming the first that differs.
        """
        for prompt_id, ids in prompt_ids.items():
            if prompt_id in self.probes and prompt_digest(ids) != self.probes[prompt_id].prompt_digest:
                raise DisaError(
                    f"its {len(ids)} token ids have digest {prompt_digest(ids)}, log Z was estimated for "
                    f"{self.probes[prompt_id].prompt_digest}: prompt or chat template changed",
                    where=f"{self.path or 'anchor'}, prompt {prompt_id}",
                    fix="train on the prompts of 1_tasks as they are; a chat template that prints the date needs a "
                    "fixed date, and a new anchor",
                )

    @property
    def run(self) -> Path | None:
        """The run directory that the anchor's folder is part of, None for an anchor by itself."""
        run = None if self.path is None else self.path.parent
        return run if run is not None and (run / "4_partition" / "manifest.json").is_file() else None

    def trajectories(self, *, thin: bool = False) -> list[ScoredTrajectory]:
        """All decided trajectories that the estimates were made from, further rounds included.

        Parameters
        ----------
        thin : bool
            As :func:`disa.runs.parquet_rows.read_rows` takes it.

        Raises
        ------
        DisaError
            Where the anchor's folder is no part of a run directory.
        """
        run = self.run
        if run is None:
            raise DisaError(
                "no trajectories beside the anchor",
                where=str(self.path or "anchor"),
                fix="keep the folder that disa.calibrate or disa run made, 3_scoring and 4_partition included",
            )
        # Rounds lie in folders of their own; those of another recipe may still be there.
        rounds = [name for name in read_json(run / "4_partition" / "manifest.json")["inputs"] if name != "scoring"]
        folders = [run / "3_scoring" / name for name in ("", *rounds)]
        rows = read_rows((path for f in folders for path in sorted(f.glob("*.parquet"))), ScoredTrajectory, thin=thin)
        return [row for row in rows if row.reward is not None]

    def log_z(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Frozen log Z of some prompts.

        Returns
        -------
        ndarray, shape (len(prompt_ids),), float64
            Nats.

        Raises
        ------
        DisaError
            Where a prompt has no estimate.
        """
        for prompt_id in prompt_ids:
            if prompt_id not in self.estimates:
                raise DisaError(
                    f"no log Z for prompt {prompt_id}; the anchor holds {len(self.estimates)} prompts",
                    where=str(self.path or "anchor"),
                    fix="train on prompts that went through proposals, scoring and partition",
                )
        return np.array([self.estimates[prompt_id].log_z for prompt_id in prompt_ids], dtype=np.float64)

    def predict(
        self,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        features: np.ndarray,
        *,
        level: float = 0.9,
    ) -> Anchor:
        """The same anchor with the regressor's log Z of prompts that have no estimate; others stay as they are.

        Parameters
        ----------
        prompts : sequence of Prompt
        prompt_ids : sequence of token id sequences
            One per prompt, rendered (:func:`disa.lm.sampling_config.encode_prompt`): the anchor keeps their digests,
            so that an edited prompt is refused in training.
        features : ndarray, shape (prompts, d)
            Of :func:`disa.partition.features.prompt_features` from these ids, with the anchor's own reference.
        level : float
            Two-sided level of the predictions' intervals.

        Raises
        ------
        DisaError
            Where the anchor holds no regressor or one of other features, or prompts, ids and features differ in number.
        """
        # scipy loads with the regressor, and only predictions need it.
        from disa.partition.features import features_fingerprint
        from disa.partition.regression import predicted_rows
        from disa.partition.regressor import Regressor

        path = None if self.path is None else self.path / REGRESSOR
        if path is None or not path.is_file():
            raise DisaError(
                "the anchor holds no regressor", where=str(self.path or "anchor"), fix="set partition.regressor: true"
            )
        if not len(features) == len(prompt_ids) == len(prompts):
            problem = f"{len(features)} rows of features and {len(prompt_ids)} of token ids for {len(prompts)} prompts"
            raise DisaError(problem, where="Anchor.predict", fix="give one of each per prompt, in their order")
        regressor = Regressor.load(path, features_fingerprint=features_fingerprint(self.fingerprint))
        beta = self.fingerprint.inverse_temperature
        predicted = regressor.predict(features, beta=beta, reward_range=self.reward_range, level=level)
        rows = {row.prompt_id: row for row in predicted_rows(prompts, predicted, self.reward_range)}
        probes = {
            p.prompt_id: Probe(p.prompt_id, prompt_digest(ids)) for p, ids in zip(prompts, prompt_ids, strict=True)
        }
        return dataclasses.replace(
            self,
            estimates=MappingProxyType(rows | dict(self.estimates)),
            probes=MappingProxyType(probes | dict(self.probes)),
        )

    @property
    def regressed(self) -> bool:
        """Whether estimates are a regressor's posterior means."""
        return any(row.method in ("posterior", "predicted") for row in self.estimates.values())

    def at_inverse_temperature(self, beta: float) -> Anchor:
        """The same anchor at another inverse temperature, exact for two-valued rewards.

        Raises
        ------
        DisaError
            Where rewards are graded: q then depends on beta, and only a new estimate will do. Or where estimates
            are a regressor's posterior means, which no single q stands for.
        """
        if not self.binary or self.regressed:
            found = "estimates are posterior means of a regressor" if self.binary else "rewards are graded"
            raise DisaError(
                f"{found}, so q depends on the inverse temperature",
                where=str(self.path or "anchor"),
                fix=f"rerun the partition stage with training.inverse_temperature={beta}",
            )
        span = self.reward_range[1] - self.reward_range[0]
        # expm1 of more than 709 nats is beyond float64.
        if not 0 < beta * span < 700:
            raise DisaError(
                f"inverse temperature {beta}, expected a number above 0 and below {700 / span:.4g}",
                where=str(self.path or "anchor"),
                fix="choose an inverse_temperature in that range",
            )
        old, low = self.fingerprint.inverse_temperature, self.reward_range[0]

        def move(log_z: float) -> float:
            q = math.expm1(log_z - old * low) / math.expm1(old * span)
            return beta * low + math.log1p(math.expm1(beta * span) * q)

        moved = {
            key: dataclasses.replace(
                row,
                log_z=beta * low + math.log1p(math.expm1(beta * span) * row.q),
                interval_low=move(row.interval_low),
                interval_high=move(row.interval_high),
            )
            for key, row in self.estimates.items()
        }
        fingerprint = dataclasses.replace(self.fingerprint, inverse_temperature=beta)
        return dataclasses.replace(self, estimates=MappingProxyType(moved), fingerprint=fingerprint)
