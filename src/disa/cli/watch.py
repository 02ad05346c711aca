"""``disa watch``: a live view of a run's folders in the terminal, whoever works in them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.live import Live
from rich.table import Table

from disa.errors import DisaError
from disa.runs.folders import read_json
from disa.runs.locks import somebody_works

_SHOWN = ("reward", "loss", "kl_to_target", "residual_rms")


def watch(options: argparse.Namespace) -> int:
    """Show every stage for as long as a process works in the run directory, or once.

    A directory in which nothing was begun is waited for: whoever is to work there is still loading.
    """
    run = Path(options.run)
    if not run.is_dir():
        raise DisaError("no such folder", where=str(run), fix="give a run directory, also of one that is under way")
    console = Console()
    if options.once:
        console.print(stage_table(run))
        return 0
    with Live(stage_table(run), console=console, refresh_per_second=4) as live:
        while somebody_works(run) or not _begun(run):
            time.sleep(options.every)
            live.update(stage_table(run))
        live.update(stage_table(run))
    left = [str(folder.relative_to(run)) for folder in _begun(run) if not (folder / "manifest.json").is_file()]
    unfinished = f"not finished: {', '.join(left)}; the command that began it continues it"
    console.print(f"no process works here; {unfinished if left else 'every stage that was begun is done'}")
    return 0


def _begun(run: Path) -> list[Path]:
    """Folders of the stages that were begun, in the order of their beginning."""
    markers = sorted(run.rglob("started.json"), key=lambda path: (path.stat().st_mtime, str(path)))
    return [path.parent for path in markers if "superseded" not in path.relative_to(run).parts]


def stage_table(run: Path) -> Table:
    """One row per stage folder that was begun: its state, its rows, and the last line of its log."""
    table = Table("stage", "state", "rows", "last step", title=str(run), title_justify="left")
    for folder in _begun(run):
        finished = folder / "manifest.json"
        state = f"done in {read_json(finished)['seconds']:.1f} s" if finished.is_file() else "under way"
        rows = sum(pq.read_metadata(part).num_rows for part in folder.glob("*.parquet"))
        table.add_row(str(folder.relative_to(run)), state, f"{rows:,}" if rows else "", _last_step(folder))
    return table


def _last_step(folder: Path) -> str:
    from disa.runs.step_log import read_step_log

    logs = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = read_step_log(logs[-1]) if logs else []
    if not lines:
        return ""
    found = {key.replace("/", "_"): value for key, value in lines[-1].items()}
    numbers = [f"{name} {found[name]:.3g}" for name in _SHOWN if isinstance(found.get(name), (int, float))]
    return ", ".join([f"step {found['step']}", *numbers])
