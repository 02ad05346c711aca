"""Put a finished comparison into a page: its tables and its scatter of quality against diversity.

``disa compare`` trains, evaluates and writes them into the run directory; this copies them between the markers of the
page::

    disa compare recipes/compare-countdown.yaml
    python benchmarks/comparison.py recipes/compare-countdown.yaml --block compare_countdown

What was set for ``disa compare`` is set here, too.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from disa.comparison.config import read_comparison
from disa.display.marked_block import fill_block
from disa.display.table import Table
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from goals import goal_rows
from page import FIGURES

PAGE = Path("docs/results.md")
SHOWN = {
    "quality_diversity": "Mean@k against effective modes",
    "kl_to_target": "KL to the target by method",
    "reward_completions": "Reward against completions",
    "reward_time": "Reward against seconds of training",
}


def main() -> None:
    """Read the run's tables and figures, write the block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="STAGE.KEY=VALUE")
    parser.add_argument("--block", required=True, help="name of the markers, and prefix of the figures")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.overrides)
    folder = Path(recipe.run_dir) / "comparison"
    results = read_json(folder / "results.json")
    tasks, evaluation, beta = recipe.tasks, recipe.evaluation, recipe.training.inverse_temperature
    work = shlex.join([str(options.recipe), *(part for text in options.overrides for part in ("--set", text))])
    lines = [
        f"Written by `disa compare {work}` and `python benchmarks/comparison.py {work} --block "
        f"{options.block}`: {tasks.heldout_prompts} held-out prompts of {evaluation.samples_per_prompt} samples, "
        f"inverse temperature {beta:g}, seeds {', '.join(map(str, read_comparison(recipe).seeds))}.",
        (folder / "table.md").read_text(encoding="utf-8").strip(),
        Table(goal_rows(results), caption="Goals of DISA's best mode, judged by means over seeds.").markdown(),
    ]
    for name, title in SHOWN.items():
        if (folder / "figures" / f"{name}.png").is_file():
            target = FIGURES / f"{options.block}_{name}.png"
            shutil.copyfile(folder / "figures" / f"{name}.png", target)
            lines.append(f"![{title}]({target.relative_to(options.page.parent)})")
    fill_block(options.page, options.block, "\n\n".join(lines))


if __name__ == "__main__":
    main()
