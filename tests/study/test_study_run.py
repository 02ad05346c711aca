"""A tiny study on the finished tiny run: what it reuses, what it measures, and that it shares and resumes."""

import argparse
import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import yaml

from disa import estimate_log_partition_batch
from disa.anchor import Anchor
from disa.cli.study import fill_page
from disa.cli.study import study as study_command
from disa.errors import DisaError
from disa.partition.draws import trajectory_columns
from disa.recipe import load_recipe
from disa.runs import cells
from disa.runs.cells import share_cells
from disa.runs.locks import RunDirectoryBusy, exclusive
from disa.runs.parquet_rows import read_rows
from disa.runs.records import EvaluationRecord, Prompt, ScoredTrajectory
from disa.study import run as study_run
from disa.study.config import read_study
from disa.study.report import write_report
from disa.study.run import Study, StudyCell

STUDY = {
    "strengths": {"reference": {}, "strong": {"steps": 2}},
    "inverse_temperatures": [1, 2],
    "trajectories": [4, 8],
    "pool": 16,
    "truth": 64,
    "seeds": 2,
    "methods": ["disa_forward"],
    "policies": [{"strengths": ["strong"], "inverse_temperatures": [2], "trajectories": [4]}],
}
STRONG = StudyCell("strong", 2.0, 4)


@pytest.fixture
def study_recipe(tiny_recipe, write_recipe):
    """Write the tiny recipe with a study section, some of its values changed, for a run directory."""

    def write(run_dir, overrides=(), **changes):
        return load_recipe(
            write_recipe(tiny_recipe | {"run_dir": str(run_dir), "study": STUDY | changes}), [*overrides]
        )

    return write


def options(recipe, page=None):
    return argparse.Namespace(recipe=str(recipe), overrides=[], page=page and str(page))


def run(recipe, report=True):
    """Lines that a study said on its way to the report."""
    lines = []
    study = Study(recipe, say=lines.append)
    study.run()
    if report:
        write_report(study)
    return lines


def worked(lines):
    return [line for line in lines if "finished earlier" not in line]


def state(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith((".lock", ".work"))]
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


@pytest.fixture(scope="module")
def finished_study(finished_run, tmp_path_factory):
    """Run directory of the finished study, and the lines that it said. Read it; change only copies."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(finished_run, folder / "run", copy_function=shutil.copy2)
    recipe = yaml.safe_load((finished_run.parent / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(json.dumps(recipe | {"run_dir": str(folder / "run"), "study": STUDY}))
    lines = run(load_recipe(folder / "recipe.yaml"))
    return folder / "run", lines


@pytest.fixture
def results(finished_study):
    return json.loads((finished_study[0] / "study" / "report" / "results.json").read_text())


def test_the_runs_own_prompts_and_models_are_used_and_left_as_they_are(finished_study, finished_run):
    run_dir, lines = finished_study
    assert lines[:2] == [f"{name}: finished earlier, nothing changed" for name in ("1_tasks", "warmup")]
    own = {name: value for name, value in state(run_dir).items() if not name.startswith("study/")}
    assert own == state(finished_run)


def test_every_cell_and_policy_of_the_recipe_is_in_the_results(results):
    cells = {(c["strength"], c["inverse_temperature"], c["trajectories"]) for c in results["cells"]}
    assert cells == {(s, b, n) for s in ("reference", "strong") for b in (1, 2) for n in (4, 8)}
    assert {cell["trajectories"]: cell["blocks"] for cell in results["cells"]} == {4: 4, 8: 2}
    assert [(p["strength"], p["trajectories"], p["method"]) for p in results["policies"]] == [
        ("strong", 4, "disa_forward")
    ]
    assert [row["inverse_temperature"] for row in results["references"]] == [2]


def test_a_cells_error_is_that_of_the_estimator_on_the_stored_rows(finished_study, results):
    run_dir, _ = finished_study
    heldout = [p.prompt_id for p in read_rows(run_dir / "1_tasks" / "heldout.parquet", Prompt)]
    truth_rows = read_rows(run_dir / "study" / "truth" / "3_scoring", ScoredTrajectory)
    hits = np.array([sum(row.reward for row in truth_rows if row.prompt_id == p) for p in heldout])
    truth = np.log1p(math.expm1(2.0) * (hits + 0.5) / 65)
    pool = read_rows(run_dir / "study" / "strengths" / "strong" / "3_scoring", ScoredTrajectory)
    pool = [row for row in pool if row.prompt_id in set(heldout)]
    errors, widths = [], []
    for block in range(4):
        # A quarter of four trajectories comes from the reference.
        rows = [row for row in pool if row.draw // (1 if row.source == "reference" else 3) == block]
        assert len(rows) == 4 * len(heldout)
        batch = estimate_log_partition_batch(**trajectory_columns(heldout, rows), beta=2.0)
        errors.append(batch.log_z - truth)
        widths.append(batch.interval_high - batch.interval_low)
    cell = next(
        c for c in results["cells"] if (c["strength"], c["inverse_temperature"], c["trajectories"]) == ("strong", 2, 4)
    )
    # Float rounding: the same numbers in another order.
    assert cell["bias"]["value"] == pytest.approx(np.mean(errors), abs=1e-12)
    assert cell["variance"]["value"] == pytest.approx(np.var(errors, axis=0, ddof=1).mean(), abs=1e-12)
    assert cell["width"]["value"] == pytest.approx(np.mean(widths), abs=1e-12)


def test_each_seed_trains_on_an_anchor_of_its_own_block(finished_study):
    run_dir, _ = finished_study
    cell = run_dir / "study" / STRONG.folder
    anchors = [Anchor.load(cell / f"seed-{seed}" / "5_anchor") for seed in range(2)]
    for anchor in anchors:
        assert {row.n for row in anchor.estimates.values()} == {4}
        assert {row.n_reference for row in anchor.estimates.values()} == {1}
        assert {row.split for row in anchor.estimates.values()} == {"train", "heldout"}
        assert anchor.fingerprint.inverse_temperature == 2.0
    rows = [read_rows(cell / f"seed-{seed}" / "3_scoring", ScoredTrajectory) for seed in range(2)]
    drawn = [{(row.prompt_id, row.source, row.draw) for row in block} for block in rows]
    assert len(drawn[0]) == len(rows[0]) == 4 * 9
    assert not drawn[0] & drawn[1]
    stored = read_rows(run_dir / "study" / "strengths" / "strong" / "3_scoring", ScoredTrajectory)
    by_key = {(row.prompt_id, row.source, row.draw): row for row in stored}
    assert all(by_key[row.prompt_id, row.source, row.draw] == row for block in rows for row in block)


def test_without_a_step_all_trajectories_come_from_the_reference_and_share_its_draws(finished_study):
    run_dir, _ = finished_study
    alone, strong = (
        read_rows(run_dir / "study" / "strengths" / name / "3_scoring", ScoredTrajectory)
        for name in ("reference", "strong")
    )
    assert {row.source for row in alone} == {"reference"}
    shared = {(row.prompt_id, row.draw): row.completion for row in alone}
    assert all(shared[r.prompt_id, r.draw] == r.completion for r in strong if r.source == "reference" and r.draw < 1)


def test_the_truth_shares_no_random_number_with_a_pool(finished_study):
    run_dir, _ = finished_study
    truth = read_rows(run_dir / "study" / "truth" / "3_scoring", ScoredTrajectory)
    pool = read_rows(run_dir / "study" / "strengths" / "reference" / "3_scoring", ScoredTrajectory)
    drawn = {(row.prompt_id, row.draw): row.log_sampler for row in pool}
    both = [(row.log_sampler, drawn[row.prompt_id, row.draw]) for row in truth if (row.prompt_id, row.draw) in drawn]
    # Equal random numbers would give equal completions throughout.
    assert len(both) > 40
    assert np.mean([a == b for a, b in both]) < 0.5


def test_a_policys_kl_is_measured_against_the_truth_and_averaged_over_seeds(finished_study, results):
    run_dir, _ = finished_study
    row, reference = results["policies"][0], results["references"][0]
    truth_rows = read_rows(run_dir / "study" / "truth" / "3_scoring", ScoredTrajectory)
    values = []
    for seed in range(2):
        folder = run_dir / "study" / STRONG.folder / f"seed-{seed}" / "7_evaluation" / "disa_forward"
        records = [r for r in read_rows(folder, EvaluationRecord) if r.split == "heldout"]
        by_prompt = {}
        for r in records:
            by_prompt.setdefault(r.prompt_id, []).append(r.log_pi - r.log_ref - 2.0 * r.reward)
        hits = {p: sum(t.reward for t in truth_rows if t.prompt_id == p) for p in by_prompt}
        values.append(
            np.mean([math.log1p(math.expm1(2.0) * (hits[p] + 0.5) / 65) + np.mean(v) for p, v in by_prompt.items()])
        )
    # Float rounding.
    assert row["metrics"]["kl_to_target"]["seeds"] == pytest.approx(values, abs=1e-12)
    assert row["metrics"]["kl_to_target"]["value"] == pytest.approx(np.mean(values), abs=1e-12)
    assert reference["metrics"]["kl_to_reference"]["value"] == 0.0
    gain = row["metrics"]["kl_to_target"]["value"] - reference["metrics"]["kl_to_target"]["value"]
    assert row["gains"]["kl_to_target"]["value"] == pytest.approx(gain, abs=1e-12)


def test_only_the_cells_variable_differs_from_the_recipe(finished_study, study_recipe):
    recipe = study_recipe(finished_study[0])
    study = Study(recipe, say=lambda line: None)
    policies = study.policies(STRONG, 1).recipe
    of_training = {"methods": ("disa_forward",), "inverse_temperature": 2.0, "seed": recipe.training.seed + 1}
    assert policies.training == recipe.training.model_copy(update=of_training)
    pool = study.pool("strong").recipe
    # Six training prompts need two blocks of four trajectories, held-out ones the whole pool.
    assert pool.proposals == recipe.proposals.model_copy(update={"per_prompt": 8, "per_heldout_prompt": 16})
    for made in (policies, pool, study.truth.recipe):
        for section in ("tasks", "sampling", "scoring", "partition", "evaluation"):
            assert getattr(made, section) == getattr(recipe, section)
        assert made.models.reference == str(finished_study[0] / "warmup" / "reference")


@pytest.fixture
def study_copy(finished_study, tmp_path):
    """A copy of the finished study's run directory that a test may change."""
    shutil.copytree(finished_study[0], tmp_path / "run", copy_function=shutil.copy2)
    return tmp_path / "run"


def test_a_second_run_changes_nothing(study_copy, study_recipe):
    before = state(study_copy)
    lines = run(study_recipe(study_copy))
    assert worked(lines) == []
    assert state(study_copy) == before


def test_another_inverse_temperature_draws_nothing(study_copy, study_recipe):
    before = state(study_copy)
    lines = run(study_recipe(study_copy, inverse_temperatures=[1, 2, 3]), report=False)
    new = [f"strengths/{name}/beta-3/n-{n}/error" for name in ("reference", "strong") for n in (4, 8)]
    assert [line.split(":")[0] for line in worked(lines)] == new
    after = state(study_copy)
    assert {name for name in before if after[name] != before[name]} == set()


def test_a_study_that_was_stopped_goes_on_to_the_same_results(study_copy, study_recipe, monkeypatch):
    class Kill(Exception):
        pass

    def found():
        paths = [*study_copy.glob("study/**/error.json"), *study_copy.glob(f"study/{STRONG.folder}/**/*.parquet")]
        return {path: path.read_bytes() for path in paths}

    expected = found()
    for folder in ("strengths/strong/beta-2", "strengths/reference/beta-1"):
        shutil.rmtree(study_copy / "study" / folder)
    measure = study_run.cell_error

    def stop(pool, counts, *arguments):
        if counts["proposal"]:
            raise Kill
        return measure(pool, counts, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(study_run, "cell_error", stop)
        with pytest.raises(Kill):
            run(study_recipe(study_copy), report=False)
    assert (study_copy / "study/strengths/reference/beta-1/n-8/error/manifest.json").is_file()
    lines = run(study_recipe(study_copy), report=False)
    assert not [line for line in worked(lines) if "reference/beta-1" in line]
    assert len(expected) > 8
    assert found() == expected


def test_a_unit_that_another_process_holds_is_left_for_later(tmp_path, monkeypatch):
    order, lines = [], []
    monkeypatch.setattr(cells, "PATIENCE_SECONDS", 0.0)
    held = exclusive(tmp_path / "a")

    def first():
        with exclusive(tmp_path / "a"):
            order.append("a")

    def second():
        order.append("b")

    def letting_go(line):
        lines.append(line)
        held.__exit__(None, None, None)

    with pytest.raises(RunDirectoryBusy), exclusive(tmp_path / "c"), exclusive(tmp_path / "c"):
        pass
    held.__enter__()
    units = {"a": first, "b": second}
    assert share_cells(lambda: units, letting_go) == {}
    assert order == ["b", "a"]
    assert lines == ["waiting for remaining cells that another process works on"]


def test_a_unit_that_fails_stops_no_other_and_the_study_ends_with_its_error(study_copy, study_recipe, monkeypatch):
    def fail(*arguments, **settings):
        raise DisaError("no draw\nis left", where="study", fix="draw more")

    study = Study(study_recipe(study_copy, inverse_temperatures=[1, 2, 3]), say=(lines := []).append)
    monkeypatch.setattr(study_run, "cell_error", fail)
    with pytest.raises(
        DisaError, match=r"2 failed \(strengths/reference, strengths/strong\), the first with: study: no draw"
    ):
        study.run()
    assert [line for line in lines if "failed" in line] == [
        f"strengths/{name}: failed, study: no draw is left. Fix: draw more" for name in ("reference", "strong")
    ]


def test_the_report_shows_every_table_and_figure_and_loads_nothing(finished_study, results):
    report = finished_study[0] / "study" / "report"
    page = (report / "study.html").read_text()
    figures = sorted(p.stem for p in (report / "figures").glob("*.png"))
    assert page.count("<svg ") == len(figures) == page.count("<figcaption id=")
    assert {"map_bias_squared", "map_variance", "rmse_trajectories", "policy_kl_to_target_beta_2"} <= set(figures)
    # Names of XML's own are no requests.
    asked = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert all(f"{scheme}://" not in asked for scheme in ("http", "https", "ftp")) and page.count("<script") == 1
    summary = (report / "summary.txt").read_text()
    for cell in results["cells"]:
        assert f"{cell['rmse']['value']:.3f} ± {cell['rmse']['se']:.3f}" in summary
        assert f"{cell['rmse']['value']:.3f} ± {cell['rmse']['se']:.3f}" in page


def test_the_command_prints_the_tables_and_fills_a_page(study_copy, study_recipe, tmp_path, capsys):
    study_recipe(study_copy)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study: start -->\nold\n<!-- study: end -->\nafter\n")
    assert study_command(options(tmp_path / "recipe.yaml", page)) == 0
    summary = (study_copy / "study" / "report" / "summary.txt").read_text()
    assert summary in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before\n<!-- study: start -->\nWritten by `disa study ")
    assert text.endswith("\n<!-- study: end -->\nafter\n")
    assert "old" not in text
    figures = sorted((study_copy / "study" / "report" / "figures").glob("*.png"))
    for figure in figures:
        assert f"](figures/study_{figure.name})" in text
        assert (tmp_path / "figures" / f"study_{figure.name}").read_bytes() == figure.read_bytes()


def test_a_study_is_refused_where_another_command_works(tmp_path, study_recipe):
    study_recipe(tmp_path / "run")
    with exclusive(tmp_path / "run"), pytest.raises(RunDirectoryBusy, match="another disa process is working"):
        study_command(options(tmp_path / "recipe.yaml"))


def test_a_page_without_markers_is_refused_and_left_as_it_is(finished_study, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- study: start -->")
    with pytest.raises(DisaError, match="lacks the block's markers.*Fix: add the lines"):
        fill_page(page, finished_study[0] / "study" / "report", "disa study")
    assert page.read_text() == "<!-- study: start -->"


REFUSED = {
    "no axis": ({"trajectories": []}, "trajectories is empty"),
    "a pool without replicates": ({"pool": 15}, "must hold two blocks of the largest trajectories, 8"),
    "a pool without a block for every seed": ({"seeds": 5}, "must hold a block of 4 for each of 5 seeds"),
    "policies of no cell": (
        {"policies": [{"strengths": ["weak"], "inverse_temperatures": [2], "trajectories": [4]}]},
        "policies name 'weak', which is not among the study's strengths",
    ),
    "a method without an anchor": ({"methods": ["grpo"]}, "method grpo reads no anchor"),
    "a name that is no folder": ({"strengths": {"a/b": {}}}, "strengths"),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_a_study_that_cannot_be_done_is_refused_with_its_recipe(study_recipe, tmp_path, changes, message):
    with pytest.raises(DisaError, match=message):
        read_study(study_recipe(tmp_path, **changes))


def test_unlike_blocks_regressors_and_missing_sections_are_refused(study_recipe, tmp_path, tiny_recipe, write_recipe):
    def refused(recipe):
        with pytest.raises(DisaError) as caught:
            Study(recipe, say=lambda line: None)
        return str(caught.value)

    assert "6 trajectories of which a share of 0.25" in refused(study_recipe(tmp_path, trajectories=[4, 6]))
    assert "partition.regressor is true" in refused(study_recipe(tmp_path, ["partition.regressor=true"]))
    assert "proposals.adaptive is set" in refused(study_recipe(tmp_path, ["proposals.adaptive={pilot: 4}"]))
    assert "proposals.resample is set" in refused(study_recipe(tmp_path, ["proposals.resample={}"]))
    elsewhere = ["proposals.engine=import", "proposals.files=[theirs.jsonl]"]
    assert "proposals.engine import brings a proposal of its own" in refused(study_recipe(tmp_path, elsewhere))
    assert "no study section" in refused(load_recipe(write_recipe(tiny_recipe)))
    given = ["warmup=null", "models.reference=x"]
    assert "no warmup section" in refused(study_recipe(tmp_path, given))
    with pytest.raises(DisaError, match="no study section"):
        study_command(options(write_recipe(tiny_recipe)))


def test_cells_are_frozen_and_named_by_their_coordinates():
    assert STRONG.folder == "strengths/strong/beta-2/n-4"
    with pytest.raises(dataclasses.FrozenInstanceError):
        STRONG.beta = 3.0
