"""Time the stages that run the model against its size, the completions of a prompt and their length; fit exponents.

Fills its block of docs/performance.md and draws the figure beside it; wants a quiet machine::

    OMP_NUM_THREADS=2 python benchmarks/stage_curves.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from scipy.stats import linregress
from transformers.utils import logging

from page import fill, table
from paired import Seconds, in_turns
from scoring_speed import PAGE
from stage_work import STAGES, Case, Model, works

COLOURS = ("#0072B2", "#D55E00", "#009E73")


# Fields of a case that are varied, as the page calls them; a hidden size stands for the weights it leads to.
VARIABLES = {
    "hidden_size": "weights",
    "completions": "completions of a prompt",
    "length": "tokens of a completion",
}


class Plan(NamedTuple):
    """What is measured: ascending values of each variable, the other two as in ``usual``, which is on every curve."""

    usual: Case
    values: Mapping[str, Sequence[int]]
    turns: int

    def cases(self, variable: str) -> list[Case]:
        """Cases of one variable."""
        return [self.usual._replace(**{variable: value}) for value in self.values[variable]]


# Four layers throughout: 1.1, 2.4, 4.2, 9.2, 16.3 and 30.5 million weights that multiply.
FULL = Plan(
    usual=Case(hidden_size=256, prompts=2, prompt_length=128, completions=8, length=32),
    values={
        "hidden_size": (128, 192, 256, 384, 512, 704),
        "completions": (1, 2, 4, 8, 16, 32),
        "length": (16, 32, 64, 128, 256),
    },
    turns=5,
)
QUICK = Plan(
    usual=Case(hidden_size=16, prompts=2, prompt_length=4, completions=2, length=4),
    values={"hidden_size": (8, 16, 24), "completions": (1, 2, 4), "length": (2, 4, 8)},
    turns=1,
)


class Curve(NamedTuple):
    """Times of the stages against one variable."""

    x: list[int]
    seconds: dict[str, list[Seconds]]
    """Of each stage, median over turns at each x."""


def measure(plan: Plan) -> dict[str, Curve]:
    """Curve of each variable; all cases in turns, so that what slows the machine for a while slows all of a curve."""
    with tempfile.TemporaryDirectory() as folder:
        models = {h: Model(Path(folder), h) for h in plan.values["hidden_size"]}
        # Once each: the usual case lies on every curve.
        cases = sorted({case for variable in VARIABLES for case in plan.cases(variable)})
        todo = {(c, stage): work for c in cases for stage, work in works(models[c.hidden_size], c).items()}
        found = in_turns(todo, plan.turns)
    medians = {key: Seconds(*np.median(seconds, axis=0).tolist()) for key, seconds in found.items()}
    sizes = {"hidden_size": [models[h].weights for h in plan.values["hidden_size"]]}
    return {
        variable: Curve(
            list(sizes.get(variable, plan.values[variable])),
            {stage: [medians[case, stage] for case in plan.cases(variable)] for stage in STAGES},
        )
        for variable in VARIABLES
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope of log y on log x by least squares, with its standard error; a curve that is no power law raises it."""
    if len(x) < 3:
        raise ValueError(f"{len(x)} points lie on a line whatever they are; a slope with an error needs 3")
    fit = linregress(np.log(x), np.log(y))
    return float(fit.slope), float(fit.stderr)


def upper_half(values: Sequence[float]) -> Sequence[float]:
    """The larger half of ascending values, three at least."""
    return values[-max(3, -(-len(values) // 2)) :]


def tables(plan: Plan, curves: Mapping[str, Curve]) -> str:
    """Block of the page: times, then exponents."""
    usual = plan.usual
    weights = curves["hidden_size"].x[plan.values["hidden_size"].index(usual.hidden_size)]
    text = [
        f"{torch.get_num_threads()} threads, float32, median of {plan.turns} turns: seconds, and CPU seconds of all "
        f"threads in brackets. {usual.prompts} prompts of {usual.prompt_length} tokens; where not varied "
        f"{weights / 1e6:.3g} million weights, {usual.completions} completions of a prompt, {usual.length} tokens of "
        "each. Weights are those that multiply: without the input embedding.",
    ]
    for variable, curve in curves.items():
        lines = [
            [f"{x:,}", *(f"{s.wall:.3g} ({s.cpu:.3g})" for s in (curve.seconds[stage][i] for stage in STAGES))]
            for i, x in enumerate(curve.x)
        ]
        text += ["", *table([VARIABLES[variable], *STAGES], lines)]
    lines = []
    for variable, curve in curves.items():
        for stage, seconds in curve.seconds.items():
            fits = [
                exponent(half(curve.x), half([getattr(s, clock) for s in seconds]))
                for clock in ("wall", "cpu")
                for half in (list, upper_half)
            ]
            lines.append([VARIABLES[variable], stage, *(f"{slope:.2f} ± {error:.2f}" for slope, error in fits)])
    header = ["against", "stage", "all", "upper half", "all, by CPU time", "upper half, by CPU time"]
    text += [
        "",
        "Exponents: slope of log time on log size with its standard error, which a bend of the curve raises too. The "
        "upper half, three points or more, has less of the cost that does not grow.",
        "",
        *table(header, lines),
        "",
        "![Seconds against model size, completions and length](figures/stage_curves.png)",
    ]
    return "\n".join(text)


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """Seconds on logarithmic axes, a panel a variable, with a line of slope one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(11, 4), sharey=True, layout="constrained")
    for axes, (variable, curve) in zip(panels, curves.items(), strict=True):
        for stage, colour in zip(STAGES, COLOURS, strict=True):
            axes.loglog(curve.x, [s.wall for s in curve.seconds[stage]], "o-", color=colour, label=stage)
        linear = curve.seconds[STAGES[-1]][-1].wall * np.array(curve.x) / curve.x[-1]
        axes.loglog(curve.x, linear, "--", color="#7F7F7F", label="exponent 1")
        # The measured values themselves: powers of ten are too far apart.
        axes.set_xticks(curve.x, [f"{x / 1e6:.1f}M" if x >= 1e6 else f"{x:,}" for x in curve.x])
        axes.set_xticks([], minor=True)
        axes.set(xlabel=VARIABLES[variable])
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=f"seconds, threads: {torch.get_num_threads()}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(STAGES) + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"figure: {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, fill the page, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose block is filled; the figure lies beside it")
    parser.add_argument("--turns", type=int, help="measured turns")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs; needs another --page")
    options = parser.parse_args(arguments)
    if options.quick and options.page.resolve() == PAGE.resolve():
        parser.error(f"--quick measures nothing for {PAGE}: give another --page")
    logging.disable_progress_bar()
    plan = QUICK if options.quick else FULL
    plan = plan._replace(turns=options.turns or plan.turns)
    curves = measure(plan)
    draw(curves, options.page.parent / "figures" / "stage_curves.png")
    text = tables(plan, curves)
    print(text)
    fill("stage-curves", text, options.page)


if __name__ == "__main__":
    main()
