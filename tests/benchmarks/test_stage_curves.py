"""Time by stage against size, completions and length: the fit is right, and every stage gets the work its case says."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = "before\n<!-- stage-curves: start -->\nold\n<!-- stage-curves: end -->\nafter\n"


@pytest.fixture
def stage_curves(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("stage_curves")


@pytest.fixture
def stage_work(stage_curves):
    return importlib.import_module("stage_work")


def test_the_exponent_of_a_power_law_is_its_power_without_an_error(stage_curves):
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    slope, error = stage_curves.exponent(x, 3 * x**0.7)
    # Rounding of float64 logarithms of order one; the error is the square root of squares of such.
    assert slope == pytest.approx(0.7, rel=0, abs=1e-14)
    assert error == pytest.approx(0.0, abs=1e-7)


def test_the_exponent_and_its_error_are_those_of_least_squares(stage_curves):
    x = np.array([16.0, 32.0, 64.0, 128.0, 256.0])
    y = x**0.9 * np.exp(np.random.default_rng(0).normal(0, 0.1, len(x)))
    design = np.stack([np.ones(len(x)), np.log(x)], axis=1)
    solution, (residual,), *_ = np.linalg.lstsq(design, np.log(y))
    error = np.sqrt(residual / (len(x) - 2) * np.linalg.inv(design.T @ design)[1, 1])
    assert stage_curves.exponent(x, y) == pytest.approx((solution[1], error), rel=1e-10)
    assert error > 0.01


def test_two_points_have_no_error_and_are_refused(stage_curves):
    with pytest.raises(ValueError, match="2 points"):
        stage_curves.exponent([1, 2], [1, 2])


def test_the_upper_half_has_less_of_a_fixed_cost(stage_curves):
    half = stage_curves.upper_half
    assert (half([1, 2, 3]), half([1, 2, 3, 4, 5]), half([1, 2, 3, 4, 5, 6, 7])) == ([1, 2, 3], [3, 4, 5], [4, 5, 6, 7])
    x = [1, 2, 4, 8, 16, 32]
    seconds = [5 + n for n in x]
    assert stage_curves.exponent(x, seconds)[0] < stage_curves.exponent(half(x), half(seconds))[0] < 1


def test_a_quick_run_gives_every_stage_its_cases_and_fills_page_and_figure(
    stage_curves, stage_work, monkeypatch, tmp_path
):
    done = {stage: set() for stage in stage_work.STAGES}

    def note(stage, model, prompts, rows, length):
        done[stage].add((model.config.hidden_size, len(prompts), len(prompts[0]), rows // len(prompts), length))

    def drawing(model, rows, numbers, stops, original=stage_work.draw_tokens):
        ids, log_probs = original(model, rows, numbers, stops)
        assert {len(row) for row in ids} == {numbers.shape[1]}
        note("proposals", model, list({tuple(row) for row in rows}), len(rows), numbers.shape[1])
        return ids, log_probs

    def scoring(model, rows, completions, original=stage_work.sequence_log_probs):
        (length,) = {len(row) for row in completions}
        note("scoring", model, list({tuple(row) for row in rows}), len(rows), length)
        return original(model, rows, completions)

    def training(trainer, original=stage_work.last_step):
        args, prompts = trainer.args, trainer.train_dataset["prompt"]
        assert trainer.prompts_not_shared is None
        in_step = prompts[: args.per_device_train_batch_size // args.num_generations]
        words = [text.split() for text in in_step]
        note("training step", trainer.model, words, args.per_device_train_batch_size, args.max_completion_length)
        seconds = original(trainer)
        # Sampled and updated twice: each log line of a step says how long its completions were.
        lengths = [line["completions/mean_length"] for line in trainer.state.log_history if "loss" in line]
        assert lengths == [args.max_completion_length] * 2
        return seconds

    monkeypatch.setattr(stage_work, "draw_tokens", drawing)
    monkeypatch.setattr(stage_work, "sequence_log_probs", scoring)
    monkeypatch.setattr(stage_work, "last_step", training)
    (tmp_path / "page.md").write_text(PAGE)
    stage_curves.main(["--quick", "--page", str(tmp_path / "page.md")])

    plan = stage_curves.QUICK
    expected = {tuple(case) for variable in stage_curves.VARIABLES for case in plan.cases(variable)}
    assert len(expected) == 7
    assert done == dict.fromkeys(stage_work.STAGES, expected)

    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before\n<!-- stage-curves: start -->\n") and page.endswith("end -->\nafter\n")
    times = re.findall(r"^\| ([\d,]+) \| (\S+) \((\S+)\) \| (\S+) \((\S+)\) \| (\S+) \((\S+)\) \|$", page, re.MULTILINE)
    assert [int(row[0].replace(",", "")) for row in times[3:]] == [1, 2, 4, 2, 4, 8]
    assert len(times) == 9 and all(float(value) > 0 for row in times for value in row[1:])
    assert page.count(" ± ") == 3 * 3 * 4
    assert (tmp_path / "figures" / "stage_curves.png").read_bytes().startswith(b"\x89PNG")


def test_weights_count_what_multiplies(stage_work, tmp_path):
    model = stage_work.Model(tmp_path, 16)
    # Four layers of attention (16 x 16 queries and outputs, 16 x 8 keys and values), a gated feed-forward of 64, two
    # norms; the last norm; the head.
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 64 + 2 * 16
    assert model.weights == 4 * layer + 16 + 16 * stage_work.VOCABULARY


def test_completions_that_end_early_are_no_measurement(stage_work, monkeypatch, tmp_path):
    def ended_early(trainer):
        trainer.state.log_history = [{"loss": 0.0, "completions/min_length": 3.0}]

    monkeypatch.setattr(stage_work, "last_step", ended_early)
    case = stage_work.Case(hidden_size=16, prompts=2, prompt_length=4, completions=2, length=4)
    step = stage_work.works(stage_work.Model(tmp_path, 16), case)["training step"]
    with pytest.raises(RuntimeError, match=r"\[3.0\] tokens where all should have 4"):
        step()


def test_toy_sizes_do_not_reach_the_documentation(stage_curves, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    stage_curves.PAGE.parent.mkdir()
    stage_curves.PAGE.write_text(PAGE)
    with pytest.raises(SystemExit):
        stage_curves.main(["--quick"])
    assert "give another --page" in capsys.readouterr().err
    assert stage_curves.PAGE.read_text() == PAGE
