"""``disa inspect``: the verdict on an anchor, with its figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.partition.draws import trajectory_columns
from disa.partition.sweep import sweep_log_partition
from disa.partition.verdict import verdict
from disa.partition.weighable import weighable
from disa.runs.folders import read_json
from disa.runs.records import ScoredTrajectory, read_rows

ALARMING_ERRORS = 4.0
"""Standard errors of the null test's log ratio: beyond them the two models' log-probabilities do not agree."""


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
    if inverse_temperatures:
        result["sweep"] = _sweep(anchor, inverse_temperatures)
    if figures is not None:
        result["figures"] = _draw(anchor, Path(figures))
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)
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
    scoring = None if anchor.path is None else anchor.path.parent / "3_scoring"
    if anchor.regressed or scoring is None or not scoring.is_dir():
        # A regressor's posterior is no estimate of the draws alone, and is refused there.
        trained = [prompt_ids[i] for i in train]
        return lambda betas: [anchor.at_inverse_temperature(beta).log_z(trained) for beta in betas]
    # Rounds lie in folders of their own; those of another recipe may still be there.
    inputs = read_json(scoring.parent / "4_partition" / "manifest.json")["inputs"]
    folders = [scoring, *(scoring / name for name in inputs if name != "scoring")]
    files = [file for folder in folders for file in sorted(folder.glob("*.parquet"))]
    found, wanted = read_rows(files, ScoredTrajectory), set(prompt_ids)
    judged = [row for row in found if row.prompt_id in wanted and row.reward is not None]
    # Where the proposal is unknown, there are pass rates only.
    arrays = trajectory_columns(prompt_ids, weighable(judged, "pass_rate"))
    sampling = {"methods": methods, "reward_range": anchor.reward_range}
    return lambda betas: sweep_log_partition(**arrays, betas=betas, **sampling).T[:, train]


def _print(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    beta = result["fingerprint"]["inverse_temperature"]
    console.print(
        f"[bold]{result['anchor']}[/bold]: log Z of {result['prompts']} prompts at inverse temperature {beta}"
    )
    console.print(f"good {result['good']}, gated {result['gated']}, flagged {result['flagged']}")
    for name, flag in result["flags"].items():
        console.print(f"  {name} ({flag['prompts']}): {flag['meaning']}")
    for line in _evidence_lines(result):
        console.print(line, markup=False)
    if result["worst"]:
        table = Table("prompt", "log Z", "interval", "hits ESS", "flags", title="worst prompts", title_justify="left")
        for row in result["worst"]:
            low, high = row["interval"]
            numbers = f"{row['log_z']:.2f}", f"[{low:.2f}, {high:.2f}]", f"{row['hits_ess']:.1f}"
            table.add_row(row["prompt_id"], *numbers, " ".join(row["flags"]))
        console.print(table, markup=False)
    if "sweep" in result:
        title = "other inverse temperatures, medians over training prompts"
        table = Table("beta", "log Z", "target's mean reward", "KL(target || reference)", title=title)
        for row in result["sweep"]:
            table.add_row(*(f"{row[name]:.3g}" for name in ("inverse_temperature", "log_z", "mean_reward", "kl")))
        console.print(table, markup=False)
    for figure in result.get("figures", []):
        console.print(f"figure: {figure}", markup=False)


def _evidence_lines(result: dict[str, Any]) -> list[str]:
    """One sentence each on the budget, the null test, the coverage and the regressor, where the anchor holds them."""
    lines = []
    if budget := result.get("budget"):
        spent = (
            "budget: {trajectories} trajectories over {prompts} training prompts, {fewest} to {most} a prompt "
            "(median {median:g}), {from_reference} of them from the reference; "
        )
        adaptive = (
            "{reached} prompts reached the precision of {precision:g}, {capped} stopped at the cap of {cap} without it"
        )
        resampled = "{still_flagged} prompts are still flagged for want of draws"
        lines.append((spent + (resampled if "still_flagged" in budget else adaptive)).format(**budget))
    test = result.get("null_test", {})
    if test.get("log_ratio") is not None:
        errors = abs(test["log_ratio"]) / test["standard_error"] if test["standard_error"] else 0.0
        reading = (
            "do not agree: check temperature, template and tokenizer"
            if errors > ALARMING_ERRORS
            else "agree with what was drawn"
        )
        lines.append(
            f"null test: log ratio {test['log_ratio']:.3f} +- {test['standard_error']:.3f} nats over {test['prompts']} "
            f"prompts (0 if right): the two models' log-probabilities {reading}"
        )
    coverage = result.get("coverage", {})
    if coverage.get("share") is not None:
        shares = ", ".join(f"{s:.0%} by {t:g}" for t, s in zip(coverage["nats"], coverage["share"], strict=True))
        lines.append(f"coverage: reference successes that the proposal writes less often, by t nats or more: {shares}")
    regressor = result.get("regressor", {})
    if regressor.get("prompts"):
        r = {name: f"{value:.2f}" for name, value in regressor.items() if name != "prompts"}
        lines.append(
            f"regressor on {regressor['prompts']} prompts outside its fit: R2 of logit q {r['r2_logit_q']}, "
            f"NLL {r['nll']} (constant {r['nll_constant']}), RMSE of log Z {r['rmse']} "
            f"(constant {r['rmse_constant']}), coverage {r['coverage']} at level {r['level']}"
        )
    elif regressor:
        lines.append(f"regressor: not judged, {regressor['reason']}")
    return lines


def _draw(anchor: Anchor, folder: Path) -> list[str]:
    # matplotlib takes a second to load, and only --figures needs it.
    from disa.display.figures import png, style
    from disa.report.partition_figures import partition_figures

    folder.mkdir(parents=True, exist_ok=True)
    rows, beta, written = list(anchor.estimates.values()), anchor.fingerprint.inverse_temperature, []
    how = {"binary": anchor.binary, "coverage": anchor.evidence.get("coverage")}
    with style():
        for figure in partition_figures(rows, beta, anchor.reward_range, **how):
            path = folder / f"{figure.name}.png"
            path.write_bytes(png(figure.drawing))
            written.append(str(path))
    return written
