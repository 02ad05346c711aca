"""``disa plan``: what a recipe will cost, here and on a stated cluster."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from disa.cli.quiet import quiet_libraries
from disa.display.table import aligned_columns
from disa.errors import DisaError
from disa.planning.cluster import GPUS, Cluster
from disa.recipe import load_recipe
from disa.runs.processes import refuse_launch

if TYPE_CHECKING:
    from disa.planning.plan import StagePlan


def plan(options: argparse.Namespace) -> int:
    """Rehearse the recipe, then print its plan as a table or as JSON."""
    recipe = load_recipe(options.recipe, options.overrides)
    cluster = _cluster(options)
    refuse_launch("disa plan")
    from disa.planning.plan import make_plan
    from disa.planning.rehearsal import rehearse

    quiet_libraries()
    rehearsal = rehearse(recipe)
    plans = make_plan(recipe, rehearsal, cluster=cluster, against=options.against and Path(options.against))
    if options.json:
        found = {
            "model": dataclasses.asdict(rehearsal.shape),
            "lengths": dataclasses.asdict(rehearsal.lengths),
            "cluster": cluster and dataclasses.asdict(cluster),
            "stages": [one.as_json() for one in plans],
        }
        print(json.dumps(found, indent=1))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    shape, lengths = rehearsal.shape, rehearsal.lengths
    console.print(
        f"{options.recipe}: {shape.parameters / 1e6:,.4g}M parameters, {lengths.prompt:.0f} prompt and "
        f"{lengths.completion:.0f} completion tokens on average"
    )
    headings = ["stage", "sequences", "tokens", "TFLOP", "memory GB", "time here"]
    headings += ["measured", "planned/measured", "GB measured"] if options.against else []
    headings += [f"on {cluster.count} {cluster.gpu}", "fits"] if cluster else []
    rows = [headings, *(_cells(one, cluster, bool(options.against)) for one in plans)]
    console.print(aligned_columns(rows, numbers=True))
    console.print(f"total here: {_time(sum(one.seconds for one in plans))}")
    if cluster:
        total = sum(one.cluster_seconds or 0.0 for one in plans)
        console.print(
            f"total on {cluster.count} {cluster.gpu}: {_time(total)}, {total * cluster.count / 3600:.3g} GPU hours, at "
            f"{cluster.passes:.0%} of {GPUS[cluster.gpu].bfloat16 / 1e12:.0f} TFLOP/s in passes and "
            f"{cluster.decoding:.0%} in decoding"
        )
    return 0


def _cells(one: StagePlan, cluster: Cluster | None, against: bool) -> list[str]:
    """One row of the table."""
    work = one.work
    cells = [one.stage, *[""] * 4]
    if work:
        numbers = (f"{work.flops / 1e12:,.3g}", f"{work.memory / 1e9:.2f}")
        cells = [one.stage, f"{work.sequences:,}", f"{work.tokens:,.0f}", *numbers]
    cells.append(_time(one.seconds))
    if against:
        cells += ["", ""] if one.ratio is None or one.measured is None else [_time(one.measured), f"{one.ratio:.2f}"]
        cells.append("" if one.held is None else f"{one.held / 1e9:.2f}")
    if cluster:
        cells += ["", ""]
        if work and one.cluster_seconds is not None:
            cells[-2:] = _time(one.cluster_seconds), cluster.fits(work)
    return cells


def _cluster(options: argparse.Namespace) -> Cluster | None:
    if options.gpus is None:
        return None
    if options.gpus < 1:
        raise DisaError(f"found {options.gpus}", where="--gpus", fix="give a number of 1 or more")
    return Cluster(options.gpu, options.gpus, *(options.utilisation or ()))


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
