"""Figures of many methods: nothing collapses, and curves stand where their completions are."""

import matplotlib
import numpy as np
import pytest
from test_over_seeds import comparison, method

from disa.comparison.budget import Budget
from disa.comparison.figures import comparison_figures, reward_curve
from disa.display.figures import ScatterPoint, as_png, figure_style, model_styles, quality_against_diversity
from disa.training.methods import METHODS


def logs(rewards, seconds=1.0):
    return [{"step": i + 1, "wall_time": seconds * (i + 1), "reward": r} for i, r in enumerate(rewards)]


def test_a_curve_starts_behind_what_was_read_and_ends_at_all_completions():
    budget = Budget(steps=20, prompts_per_step=2, drawn_per_step=16, stored_per_step=0, read=40)
    rewards = np.linspace(0.1, 0.5, 20).tolist()
    found = method("disa", (0.5, 2, 0.1), (0.5, 2, 0.1), budget=budget, logs={0: logs(rewards), 1: logs(rewards, 3.0)})
    completions, wall, reward = reward_curve(found)
    assert (completions[0], completions[-1]) == (40 + 16, budget.completions)
    # Two seconds per step on average; the last tenth is two steps, whose rewards lie 0.4/19 apart.
    assert (wall[0], wall[-1]) == (2.0, 40.0)
    assert reward[-1] == pytest.approx(0.5 - 0.2 / 19, abs=1e-12)
    assert reward[0] == pytest.approx(0.1, abs=1e-12)


def test_a_method_that_draws_nothing_has_no_curve():
    assert reward_curve(method("sft", (0.5, 2, 0.1))) is None


def test_methods_that_draw_have_curves_also_where_no_training_prompt_is_evaluated():
    rising = {0: logs([0.1, 0.2, 0.3])}
    drawing = [method(m, (0.5, 2, 0.1), logs=rising) for m in ("disa", "grpo")]
    with figure_style():
        figures = {p.name: p for p in comparison_figures(comparison(*drawing, method("sft", (0.5, 2, 0.1))))}
    for name in ("reward_completions", "reward_time"):
        (axes,) = figures[name].drawing.axes
        assert [line.get_label() for line in axes.lines] == ["disa", "grpo"]
        assert "offline methods' policies saw no reward and are not shown" in figures[name].caption
    assert "reward_time" not in {p.name for p in comparison_figures(comparison(method("sft", (0.5, 2, 0.1))))}


@pytest.mark.parametrize("distances", [(1.3, 3.2), (2.1, 4.6), (0.2, 0.45), (0.05, 9.0)])
def test_distances_are_labelled_by_plain_numbers_a_few_of_them(distances):
    methods = [method(name, (0.5, 2, kl)) for name, kl in zip(("disa", "grpo"), distances, strict=True)]
    results = comparison(*methods)
    distance = results.reference["heldout"]["kl_to_target"]
    distance.update(dict.fromkeys(distance, sum(distances) / 2))  # its line widens the view of no case
    with figure_style():
        (figure,) = [p for p in comparison_figures(results) if p.name == "kl_to_target"]
        as_png(figure.drawing)
        (axes,) = figure.drawing.axes
        low, high = axes.get_xlim()
        ticks = axes.xaxis.get_major_ticks() + axes.xaxis.get_minor_ticks()
        seen = [t.label1.get_text() for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()]
    assert 2 <= len(seen) <= 10
    assert [float(text) for text in seen] == sorted(map(float, seen))


def test_every_method_at_once_is_drawn_without_a_warning():
    # Warnings are errors here: with all names inside it, the axes had no room left and matplotlib said so.
    methods = [method(m, (0.1 + 0.03 * i, 1 + i / 9, 0.1 + i), (0.1, 1, 0.1)) for i, m in enumerate(METHODS)]
    for m in methods:
        for values in m.values.values():
            values["train"] = values["heldout"]
    results = comparison(*methods)
    results.reference["train"] = results.reference["heldout"]
    with figure_style():
        figures = comparison_figures(results)
        sizes = {figure.name: len(as_png(figure.drawing)) for figure in figures}
    assert sorted(sizes) == ["kl_to_target", "quality_diversity", "reward_completions", "reward_time"]


def test_the_report_of_a_run_with_every_method_is_drawn_without_a_warning():
    points = [ScatterPoint(name, (0.5, 0.1), (1.5, 0.1), split) for name in METHODS for split in ("heldout", "train")]
    with figure_style():
        (figure,) = quality_against_diversity(points, "Mean@8", "")
        assert as_png(figure.drawing)
        axes = figure.drawing.axes[0].get_position()
    # Room for the points: more than half of the figure's width and a third of its height, which grew by the names.
    assert axes.width > 0.5 and axes.height > 1 / 3


def test_styles_of_all_methods_differ():
    looks = [tuple(map(str, look.values())) for look in model_styles(["reference", *METHODS]).values()]
    assert len(set(looks)) == len(looks) == len(METHODS) + 1


def test_drawing_leaves_matplotlib_s_settings_alone():
    before = dict(matplotlib.rcParams)
    with figure_style():
        comparison_figures(comparison(method("disa", (0.5, 2, 0.1)), method("grpo", (0.5, 2, 0.1))))
    assert dict(matplotlib.rcParams) == before
