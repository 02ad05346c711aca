"""``disa inspect``: the verdict on an anchor, with its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.partition.verdict import verdict


def inspect_path(path: str, *, as_json: bool, figures: str | None) -> int:
    """Print how far an anchor's estimates can be trusted, for people or as one JSON object."""
    anchor = Anchor.load(_anchor_folder(Path(path)))
    rows = list(anchor.estimates.values())
    result = {"anchor": str(anchor.path), "fingerprint": anchor.fingerprint.as_dict()} | verdict(rows)
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


def _print(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    beta = result["fingerprint"]["inverse_temperature"]
    console.print(
        f"[bold]{result['anchor']}[/bold]: log Z of {result['prompts']} prompts at inverse temperature {beta}"
    )
    console.print(f"good {result['good']}, gated {result['gated']}, flagged {result['flagged']}")
    for name, flag in result["flags"].items():
        console.print(f"  {name} ({flag['prompts']}): {flag['meaning']}")
    if result["worst"]:
        table = Table("prompt", "log Z", "interval", "hits ESS", "flags", title="worst prompts", title_justify="left")
        for row in result["worst"]:
            low, high = row["interval"]
            numbers = f"{row['log_z']:.2f}", f"[{low:.2f}, {high:.2f}]", f"{row['hits_ess']:.1f}"
            table.add_row(row["prompt_id"], *numbers, " ".join(row["flags"]))
        console.print(table, markup=False)
    for figure in result.get("figures", []):
        console.print(f"figure: {figure}", markup=False)


def _draw(anchor: Anchor, folder: Path) -> list[str]:
    # matplotlib takes a second to load, and only --figures needs it.
    from disa.report.canvas import png, style
    from disa.report.partition_figures import partition_plates

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with style():
        for plate in partition_plates(list(anchor.estimates.values()), anchor.fingerprint.inverse_temperature):
            path = folder / f"{plate.name}.png"
            path.write_bytes(png(plate.figure))
            written.append(str(path))
    return written
