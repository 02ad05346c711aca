"""``disa inspect``: the verdict on an anchor, with its figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disa.anchor import Anchor
from disa.cli.inspect_text import fitness, print_verdict
from disa.errors import DisaError
from disa.partition.draws import collect_draws, trajectory_columns
from disa.partition.gate import proposal_divergence
from disa.partition.sweep import sweep_log_partition
from disa.partition.verdict import verdict
from disa.partition.weighable import weighable
from disa.runs.folders import read_json
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, ScoredTrajectory


def inspect(options: argparse.Namespace) -> int:
    """What ``disa inspect`` does."""
    betas = options.inverse_temperature
    return inspect_path(options.path, as_json=options.json, figures=options.figures, inverse_temperatures=betas)


def inspect_path(
    path: str, *, as_json: bool, figures: str | None, inverse_temperatures: Sequence[float] | None = None
) -> int:
    """Print how far an anchor's estimates can be trusted, for people or as one JSON object."""
    anchor = Anchor.load(_anchor_folder(Path(path)))
    rows = list(anchor.estimates.values())
    result = {"anchor": str(anchor.path), "fingerprint": anchor.fingerprint.as_dict()} | verdict(rows)
    result |= {name: value for name, value in anchor.evidence.items() if value is not None}
    result |= _divergence(anchor) | {"fit": fitness(result, rows)}
    texts = _texts(anchor)
    result["worst"] = [row | {"prompt": texts.get(row["prompt_id"])} for row in result["worst"]]
    if anchor.path and (certified := anchor.path.parent / "8_report" / "certificates.json").is_file():
        result["certificates"] = read_json(certified)
    if inverse_temperatures:
        result["sweep"] = _sweep(anchor, inverse_temperatures)
    if figures is not None:
        result["figures"] = _draw(anchor, Path(figures))
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print_verdict(result)
    return 0


def _anchor_folder(path: Path) -> Path:
    for folder in (path, path / "5_anchor"):
        if (folder / "anchor.parquet").is_file():
            return folder
    raise DisaError(
        "neither an anchor nor a run directory with a finished anchor stage",
        where=str(path),
        fix="give RUN or RUN/5_anchor; 'disa run RECIPE --until anchor' makes one",
    )


def _sweep(anchor: Anchor, betas: Sequence[float]) -> list[dict[str, float]]:
    """Log Z of the training prompts at other inverse temperatures, from the run's trajectories or the anchor's q.

    ``mean_reward`` is the target's, d log Z / d beta by a central difference, and ``kl`` its distance from the
    reference, beta E[r] - log Z: what a policy would have to move.
    """
    log_z_at = _log_z_at(anchor)
    found = []
    for beta in betas:
        if not (np.isfinite(beta) and beta > 0):
            problem = f"inverse temperature {beta}, expected a finite positive number"
            raise DisaError(problem, where="disa inspect", fix="give numbers above 0")
        step = 1e-4 * beta
        # The given value first: where it is refused, the message names it.
        log_z, low, high = log_z_at([beta, beta - step, beta + step])
        mean_reward = (high - low) / (2.0 * step)
        values = {"log_z": log_z, "mean_reward": mean_reward, "kl": beta * mean_reward - log_z}
        found.append({"inverse_temperature": beta} | {name: float(np.median(v)) for name, v in values.items()})
    return found


def _log_z_at(anchor: Anchor) -> Any:
    """Function from inverse temperatures to log Z, one array over the training prompts each.

    Prompts learn from each other, so all that were estimated together take part. Every prompt keeps the anchor's
    estimator for it: at the anchor's own inverse temperature this is its log Z.
    """
    rows = list(anchor.estimates.values())
    prompt_ids, methods = [row.prompt_id for row in rows], [row.method for row in rows]
    train = [i for i, row in enumerate(rows) if row.split == "train"]
    judged = None if anchor.regressed else _scored(anchor, prompt_ids)
    if judged is None:
        # A regressor's posterior is no estimate of the draws alone, and is refused there.
        trained = [prompt_ids[i] for i in train]
        return lambda betas: [anchor.at_inverse_temperature(beta).log_z(trained) for beta in betas]
    # Where the proposal is unknown, there are pass rates only.
    arrays = trajectory_columns(prompt_ids, weighable(judged, "pass_rate"))
    sampling: dict[str, Any] = {"methods": methods, "reward_range": anchor.reward_range}
    return lambda betas: sweep_log_partition(**arrays, betas=betas, **sampling).T[:, train]


def _scored(anchor: Anchor, prompt_ids: Sequence[str]) -> list[ScoredTrajectory] | None:
    """Decided trajectories behind the estimates of some prompts, None where the anchor lies outside a run."""
    if anchor.run is None:
        return None
    wanted = set(prompt_ids)
    return [row for row in anchor.trajectories(thin=True) if row.prompt_id in wanted] or None


def _divergence(anchor: Anchor) -> dict[str, Any]:
    """D of the prompts that have one, with the largest at which the gate stays open; empty where it is not known."""
    prompt_ids = [prompt_id for prompt_id, row in anchor.estimates.items() if 0 < row.n_reference < row.n]
    rows = _scored(anchor, prompt_ids) if prompt_ids else None
    if not rows or any(row.log_proposal is None for row in rows):
        return {}
    beta = anchor.fingerprint.inverse_temperature
    d, _ = proposal_divergence(
        collect_draws(**trajectory_columns(prompt_ids, rows), beta=beta, reward_range=anchor.reward_range)
    )
    known = d[np.isfinite(d)]
    if not known.size:
        return {}
    drawn = np.median([anchor.estimates[p].n - anchor.estimates[p].n_reference for p in prompt_ids])
    found = {"prompts": int(known.size), "median": float(np.median(known))}
    found |= {"lowest": float(known.min()), "highest": float(known.max()), "log_draws": float(np.log(drawn))}
    return {"divergence": found}


def _texts(anchor: Anchor) -> dict[str, str]:
    """Texts of the run's prompts by id; none where the anchor lies outside a run."""
    tasks = None if anchor.path is None else anchor.path.parent / "1_tasks"
    return {p.prompt_id: p.prompt for p in read_rows(tasks, Prompt)} if tasks is not None and tasks.is_dir() else {}


def _draw(anchor: Anchor, folder: Path) -> list[str]:
    # matplotlib takes a second to load, and only --figures needs it.
    from disa.display.figures import as_png, figure_style
    from disa.report.partition_figures import partition_figures

    folder.mkdir(parents=True, exist_ok=True)
    rows, beta, written = list(anchor.estimates.values()), anchor.fingerprint.inverse_temperature, []
    how: dict[str, Any] = {"binary": anchor.binary, "coverage": anchor.evidence.get("coverage")}
    with figure_style():
        for figure in partition_figures(rows, beta, anchor.reward_range, **how):
            path = folder / f"{figure.name}.png"
            path.write_bytes(as_png(figure.drawing))
            written.append(str(path))
    return written
