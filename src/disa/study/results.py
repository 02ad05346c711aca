"""What a finished study says, as plain values and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from disa.display.table import Table, with_error
from disa.evaluation.metrics import PromptValues, clustered_mean, paired_difference, per_prompt
from disa.evaluation.tables import largest_k
from disa.runs.folders import StageFolder, read_json
from disa.runs.records import EvaluationRecord, Prompt
from disa.study.cell_errors import measured_json
from disa.study.run import StudyCell

AXES = ("strength", "inverse_temperature", "trajectories")


def cell_row(cell: StudyCell, error: StageFolder) -> dict[str, Any]:
    """One cell's coordinates and its measured error."""
    return _coordinates(cell) | read_json(error.path / "error.json")


def policy_rows(
    cell: StudyCell,
    seeds: Sequence[Sequence[StageFolder]],
    prompts: Sequence[Prompt],
    log_z: Mapping[str, float],
    ks: Sequence[int],
) -> list[dict[str, Any]]:
    """One row per method: held-out metrics of a cell's policies.

    Values are first averaged over seeds within a prompt; ``se`` is over prompts. ``seeds`` has the mean of each seed,
    ``gains`` the differences to the reference, paired by prompt. ``seeds`` are the evaluations of each seed, the
    reference's among them.
    """
    found = [_heldout(folders, prompts, log_z, cell.beta, ks) for folders in seeds]
    rows = []
    for method in found[0].keys() - {"reference"}:
        row = _coordinates(cell) | {"method": method, "metrics": {}, "gains": {}}
        for name in found[0][method]:
            values = [seed[method][name] for seed in found]
            row["metrics"][name] = _over_seeds(values)
            if _mean(values).keys() & found[0]["reference"].get(name, {}).keys():
                row["gains"][name] = measured_json(paired_difference(_mean(values), found[0]["reference"][name]))
        rows.append(row)
    return sorted(rows, key=lambda row: row["method"])


def reference_row(
    folder: StageFolder, beta: float, prompts: Sequence[Prompt], log_z: Mapping[str, float], ks: Sequence[int]
) -> dict[str, Any]:
    """The reference's held-out metrics against the target of one inverse temperature."""
    found = _heldout([folder], prompts, log_z, beta, ks)["reference"]
    metrics = {name: _over_seeds([values]) for name, values in found.items()}
    return {"inverse_temperature": beta, "method": "reference", "metrics": metrics}


def _heldout(
    folders: Sequence[StageFolder],
    prompts: Sequence[Prompt],
    log_z: Mapping[str, float],
    beta: float,
    ks: Sequence[int],
) -> dict[str, dict[str, PromptValues]]:
    records = [row for folder in folders for row in folder.rows(EvaluationRecord) if row.split == "heldout"]
    n_solutions = {p.prompt_id: p.n_solutions for p in prompts}
    has_modes = any(row.mode is not None for row in records)
    found = per_prompt(records, n_solutions, ks, log_z=log_z, beta=beta, has_modes=has_modes)
    return {model: splits["heldout"] for model, splits in found.items()}


def _over_seeds(seeds: Sequence[PromptValues]) -> dict[str, Any]:
    means = _mean(seeds)
    of_seed = [math.fsum(values[prompt] for prompt in means) / len(means) for values in seeds]
    return measured_json(clustered_mean(means.values())) | {"seeds": of_seed}


def _mean(seeds: Sequence[PromptValues]) -> PromptValues:
    """Mean over seeds of every prompt that the metric is defined on in all of them."""
    shared = [prompt for prompt in seeds[0] if all(prompt in values for values in seeds)]
    return {prompt: math.fsum(values[prompt] for values in seeds) / len(seeds) for prompt in shared}


def _coordinates(cell: StudyCell) -> dict[str, Any]:
    return dict(zip(AXES, (cell.strength, cell.beta, cell.trajectories), strict=True))


def study_tables(results: Mapping[str, Any]) -> list[Table]:
    """Every table there are numbers for."""
    found = {"Proposals": strength_table(results)}
    found |= {f"Error of log Z, beta = {b:g}": error_table(results, b) for b in results["inverse_temperatures"]}
    found |= {"Policies, held-out prompts": policy_table(results)}
    return [Table(rows, title) for title, rows in found.items() if rows]


_ERROR_COLUMNS = {
    "bias": "bias",
    "bias_squared": "bias²",
    "variance": "variance",
    "rmse": "RMSE",
    "coverage": "coverage",
    "width": "width",
    "gated": "gated",
    "flagged": "flagged",
    "ess": "ESS",
    "hits_ess": "hits ESS",
}


def error_table(results: Mapping[str, Any], beta: float) -> list[list[str]]:
    """Header and rows: the cells of one inverse temperature."""
    rows = [["strength", "N", *_ERROR_COLUMNS.values()]]
    for cell in results["cells"]:
        if cell["inverse_temperature"] == beta:
            rows.append(
                [cell["strength"], str(cell["trajectories"]), *(_shown(cell[name], name) for name in _ERROR_COLUMNS)]
            )
    return rows


def strength_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: how strong each proposal is, and how far from the reference's successes."""
    rows = [["strength", "made by", "mean reward of its draws", "D, nats"]]
    beta, size = results["inverse_temperatures"][0], results["trajectories"][0]
    for cell in results["cells"]:
        if (cell["inverse_temperature"], cell["trajectories"]) == (beta, size):
            made = results["strengths"][cell["strength"]]
            text = f"{made['steps']} steps" if made["steps"] else "the reference itself"
            text += f", noise {made['noise']:g}" if made["noise"] else ""
            text += f", {made['prompts']} prompts" if made["prompts"] else ""
            known = [_shown(cell[name], name) if name in cell else "-" for name in ("proposal_reward", "divergence")]
            rows.append([cell["strength"], text, *known])
    return rows


def policy_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: the policies of every chosen cell, the reference first at each inverse temperature."""
    if not results["policies"]:
        return []
    k = largest_k(results["policies"][0]["metrics"], "mean")
    named = {f"mean@{k}": f"Mean@{k}", f"pass@{k}": f"pass@{k}", "effective_modes": "effective modes"}
    named |= {"kl_to_target": "KL to target, nats"}
    metrics = {name: label for name, label in named.items() if name in results["policies"][0]["metrics"]}
    rows = [["beta", "strength", "N", "method", "RMSE of log Z", *metrics.values(), "KL less the reference's"]]
    rmse = {tuple(cell[axis] for axis in AXES): cell["rmse"] for cell in results["cells"]}
    ordered = sorted(
        [*results["references"], *results["policies"]],
        key=lambda row: (row["inverse_temperature"], row["method"] != "reference"),
    )
    for row in ordered:
        where = [row.get("strength", "-"), str(row.get("trajectories", "-"))]
        error = rmse.get(tuple(row.get(axis) for axis in AXES))
        values = [_shown(row["metrics"][name]) for name in metrics]
        less = _shown(row["gains"]["kl_to_target"]) if "gains" in row else "-"
        beta = f"{row['inverse_temperature']:g}"
        rows.append([beta, *where, row["method"], _shown(error) if error else "-", *values, less])
    return rows


def _shown(measured: Mapping[str, Any], name: str = "") -> str:
    return with_error(measured["value"], measured["se"], 1 if name in ("ess", "hits_ess") else 3)
