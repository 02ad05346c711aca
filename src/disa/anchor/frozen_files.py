"""The files of a frozen anchor: written once, and refused where one is not what was frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disa.anchor.probes import Probe
from disa.errors import DisaError
from disa.runs.files import file_digest, whole_file
from disa.runs.folders import write_json
from disa.runs.parquet_rows import write_rows
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate

VERSION = 3
"""Raised whenever a frozen anchor would say something else; 3: it knows its prompts' token ids."""
REGRESSOR = "regressor.npz"
PROBES = "probes.parquet"

PROBE_BOUND = 1e-3
"""That of sampler and scorer in float32 (``scoring.parity_bound``); an anchor of bfloat16 scores has a wider one."""


def freeze(
    path: str | Path,
    estimates: Sequence[PartitionEstimate],
    fingerprint: Fingerprint,
    *,
    reward_range: tuple[float, float],
    binary: bool,
    probes: Sequence[Probe] = (),
    probe_bound: float = PROBE_BOUND,
    evidence: Mapping[str, Any] | None = None,
    key_columns: Sequence[str] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    regressor: str | Path | None = None,
) -> dict[str, Any]:
    """Write ``anchor.parquet``, ``probes.parquet`` and a manifest; returns what the manifest says under ``anchor``.

    ``evidence`` goes into the manifest, and the regressor's file, where there is one, into the folder. Raises DisaError
    where there is no estimate, an estimate is not finite, or lies outside beta times the reward range.
    """
    path = Path(path)
    if not estimates:
        raise DisaError("no estimates to freeze", where=str(path), fix="run the partition stage on at least one prompt")
    low, high = (fingerprint.inverse_temperature * r for r in reward_range)
    seen: set[str] = set()
    for index, row in enumerate(estimates):
        if row.prompt_id in seen:
            raise DisaError(
                "a second estimate of this prompt",
                where=f"{path}, row {index}, prompt {row.prompt_id}",
                fix="freeze one estimate per prompt",
            )
        seen.add(row.prompt_id)
        # One ulp-scale allowance: log1p(expm1(b)) may exceed b by rounding.
        if not low - 1e-9 <= row.log_z <= high + 1e-9:
            raise DisaError(
                f"field log_z is {row.log_z}, expected a value in [{low}, {high}]",
                where=f"{path}, row {index}, prompt {row.prompt_id}",
                fix="estimate log Z with the same inverse temperature and reward range",
            )
    path.mkdir(parents=True, exist_ok=True)
    write_rows(path / "anchor.parquet", list(estimates), PartitionEstimate)
    write_rows(path / PROBES, list(probes), Probe)
    manifest = {
        "version": VERSION,
        "fingerprint": fingerprint.as_dict(),
        "reward_range": list(reward_range),
        "binary": binary,
        "prompts": len(estimates),
        "digest": file_digest(path / "anchor.parquet")[:16],
        "probes": file_digest(path / PROBES)[:16],
        "probe_bound": probe_bound,
        "evidence": dict(evidence or {}),
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
        "key_columns": None if key_columns is None else list(key_columns),
    }
    if regressor is not None:
        with whole_file(path / REGRESSOR) as file:
            file.write(Path(regressor).read_bytes())
        manifest["regressor"] = file_digest(path / REGRESSOR)[:16]
    write_json(path / "manifest.json", {"anchor": manifest})
    return manifest


def check_frozen(path: Path, expected: str | None) -> None:
    """Refuse a file that is not the frozen one."""
    found = file_digest(path)[:16] if path.is_file() else None
    if found != expected:
        raise DisaError(
            f"{path.name} is not the one that was frozen (digest {found}, manifest says {expected})",
            where=str(path.parent),
            fix="rerun the anchor stage; what was frozen is never edited, added or removed",
        )


def check_regressor(path: Path, expected: str | None, fingerprint: Fingerprint) -> None:
    """Refuse a regressor's file that is not the frozen one, or whose features are not the anchor's."""
    check_frozen(path, expected)
    if expected is not None:
        # scipy loads with the regressor, and most anchors have none.
        from disa.partition.features import features_fingerprint
        from disa.partition.regressor import Regressor

        Regressor.load(path, features_fingerprint=features_fingerprint(fingerprint))
