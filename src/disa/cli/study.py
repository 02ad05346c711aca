"""``disa study``: the error of log Z over a grid of cells, and the policies of some of them."""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from rich.console import Console

from disa.cli.quiet import quiet_libraries
from disa.display.marked_block import fill_block
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from disa.runs.locks import shared
from disa.runs.processes import refuse_launch
from disa.runs.provenance import digest
from disa.study.config import read_study


def study(options: argparse.Namespace) -> int:
    """Run a recipe's study, print its tables, and on request put them into a page."""
    recipe = load_recipe(options.recipe, options.overrides)
    read_study(recipe, options.recipe)
    refuse_launch("disa study")
    console = Console(highlight=False)
    console.print(f"[bold]{options.recipe}[/bold] in {recipe.run_dir}")

    # A second or two of imports, after everything that can fail fast has been checked.
    from disa.study.report import write_report
    from disa.study.run import Study

    quiet_libraries()
    work = Study(recipe, say=lambda line: console.print(line, markup=False))
    with shared(Path(recipe.run_dir), digest(["study", recipe.model_dump(mode="json", exclude={"run_dir"})])):
        work.run()
        report = write_report(work).path
    console.print((report / "summary.txt").read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    if options.page is not None:
        settings = "".join(f" --set {shlex.quote(override)}" for override in options.overrides)
        fill_page(Path(options.page), report, f"disa study {options.recipe}{settings}")
        console.print(f"page: {options.page}")
    console.print(f"report: {report / 'study.html'}")
    return 0


def fill_page(page: Path, report: Path, command: str) -> None:
    """Put tables and figures of a finished study between the page's markers ``study``, figures beside it."""
    from disa.study.report import study_lead
    from disa.study.results import study_tables

    results = read_json(report / "results.json")
    parts = [f"Written by `{command} --page {page}`. {study_lead(results)}"]
    parts += [f"### {table.title}\n\n{table.markdown()}" for table in study_tables(results)]
    figures = page.parent / "figures"
    figures.mkdir(exist_ok=True)
    for image in sorted((report / "figures").glob("*.png")):
        target = figures / f"study_{image.name}"
        shutil.copyfile(image, target)
        parts.append(f"![{image.stem.replace('_', ' ')}](figures/{target.name})")
    fill_block(page, "study", "\n\n".join(parts))
