"""``disa plan``: what a recipe will cost, here and on a stated cluster."""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

from disa.errors import DisaError
from disa.planning.cluster import GPUS, Cluster
from disa.recipe import load_recipe


def plan(options: argparse.Namespace) -> int:
    """Rehearse the recipe, then print its plan as a table or as JSON."""
    recipe = load_recipe(options.recipe, options.overrides)
    cluster = _cluster(options)
    from transformers.utils import logging

    from disa.planning.plan import make_plan
    from disa.planning.rehearsal import rehearse

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
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
    console = Console(highlight=False)
    shape, lengths = rehearsal.shape, rehearsal.lengths
    console.print(
        f"{options.recipe}: {shape.parameters / 1e6:,.4g}M parameters, {lengths.prompt:.0f} prompt and "
        f"{lengths.completion:.0f} completion tokens on average"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    headings = ["sequences", "tokens", "TFLOP", "memory GB", "time here"]
    headings += ["measured", "planned/measured"] if options.against else []
    headings += [f"on {cluster.count} {cluster.gpu}", "fits one GPU"] if cluster else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in plans:
        work = one.work
        row = [f"{work.sequences:,}", f"{work.tokens:,.0f}", f"{work.flops / 1e12:,.3g}", f"{work.memory / 1e9:.2f}"]
        cells = [*(row if work else [""] * 4), _time(one.seconds)]
        if options.against:
            cells += ["", ""] if one.ratio is None else [_time(one.measured), f"{one.ratio:.2f}"]
        if cluster:
            cells += [_time(one.cluster_seconds), "yes" if cluster.fits(work) else "no"] if work else ["", ""]
        table.add_row(one.stage, *cells)
    console.print(table)
    console.print(f"total here: {_time(sum(one.seconds for one in plans))}")
    if cluster:
        total = sum(one.cluster_seconds or 0.0 for one in plans)
        console.print(
            f"total on {cluster.count} {cluster.gpu}: {_time(total)}, {total * cluster.count / 3600:.3g} GPU hours, at "
            f"{cluster.passes:.0%} of {GPUS[cluster.gpu].bfloat16 / 1e12:.0f} TFLOP/s in passes and "
            f"{cluster.decoding:.0%} in decoding"
        )
    return 0


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
