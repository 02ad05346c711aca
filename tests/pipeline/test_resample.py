"""Drawing again for flagged prompts: rounds that double their trajectories before log Z is frozen."""

import dataclasses
import json
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
import yaml
from killed_run import run_to_its_end

from disa.cli.main import main
from disa.errors import DisaError
from disa.partition import estimate_log_partition_batch
from disa.partition.draws import trajectory_columns
from disa.partition.rounds import further_draws
from disa.partition.verdict import MENDED_BY_DRAWS
from disa.pipeline import Pipeline
from disa.proposals.config import ProposalsConfig, ResampleConfig
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory

FIRST = 12
"""Trajectories of a training prompt before the rounds: some prompts have enough hits among them, others have not."""


ROUNDS = [f"{stage}/round-{number}" for number in (1, 2) for stage in ("2_proposals", "3_scoring")]


def values(tiny, run_dir, rounds=2, **sections):
    """The tiny recipe with rounds that draw again."""
    proposals = tiny["proposals"] | {"per_prompt": FIRST, "resample": {"rounds": rounds} if rounds else None}
    return tiny | {"run_dir": str(run_dir), "proposals": proposals} | sections


def done(lines):
    return [line.split(":")[0] for line in lines if "done in" in line]


def run(path, until="anchor"):
    lines = []
    Pipeline(load_recipe(path), say=lines.append).run(until)
    return lines


def written(folder, recipe):
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def tiny(finished_run):
    return yaml.safe_load((finished_run.parent / "recipe.yaml").read_text())


@pytest.fixture(scope="module")
def resampled(finished_run, tiny, tmp_path_factory):
    """Run directory of a run that was asked for rounds once it was finished, and what it then said.

    Only copies may change.
    """
    folder = tmp_path_factory.mktemp("resample")
    for name in ("1_tasks", "warmup"):
        shutil.copytree(finished_run / name, folder / "run" / name)
    run(written(folder, values(tiny, folder / "run", rounds=0)))
    return folder / "run", run(written(folder, values(tiny, folder / "run")))


def test_asking_for_rounds_keeps_what_was_drawn_before(resampled):
    assert done(resampled[1]) == [*ROUNDS, "4_partition", "5_anchor"]


def rows_of(folder):
    files = [path for path in folder.rglob("*.parquet") if path.parent.name != "reference"]
    return read_rows(sorted(files), ScoredTrajectory)


def test_each_round_doubles_the_flagged_prompts_and_no_other(resampled, tiny):
    run_dir, said = resampled
    train = {p.prompt_id for p in read_rows(run_dir / "1_tasks", Prompt) if p.split == "train"}
    rows = read_rows(run_dir / "3_scoring", ScoredTrajectory)
    sizes = {p: FIRST for p in train}
    for number in (1, 2):
        ids = sorted({row.prompt_id for row in rows})
        batch = estimate_log_partition_batch(**trajectory_columns(ids, rows), beta=2.0)
        flags = dict(zip(ids, batch.flags, strict=True))
        wanted = {p for p in train if MENDED_BY_DRAWS.intersection(flags[p])}
        more = read_rows(run_dir / "3_scoring" / f"round-{number}", ScoredTrajectory)
        assert Counter(row.prompt_id for row in more) == {p: sizes[p] for p in wanted}
        total = sum(sizes[p] for p in wanted)
        line = f"2_proposals/round-{number}: {total} more trajectories for {len(wanted)} of {len(train)} prompts"
        assert line in said
        sizes |= {p: 2 * sizes[p] for p in wanted}
        rows += more
    # The test is one of a choice between prompts: neither all nor none of them were drawn for again.
    assert len(set(sizes.values())) > 1
    estimates = read_rows(run_dir / "4_partition", PartitionEstimate)
    assert {e.prompt_id: e.n for e in estimates if e.split == "train"} == sizes


def test_a_prompt_keeps_its_share_of_reference_draws_and_numbers_them_through(resampled):
    found = Counter()
    numbers = {}
    for row in rows_of(resampled[0] / "3_scoring"):
        found[row.prompt_id, row.source] += 1
        numbers.setdefault((row.prompt_id, row.source), []).append(row.draw)
    first = ProposalsConfig(per_prompt=FIRST, reference_share=0.25).counts("train")
    train = {p.prompt_id for p in read_rows(resampled[0] / "1_tasks", Prompt) if p.split == "train"}
    assert all(found[p, "reference"] * first["proposal"] == found[p, "proposal"] * first["reference"] for p in train)
    assert all(sorted(drawn) == list(range(len(drawn))) for drawn in numbers.values())


def test_inspect_says_what_was_drawn_and_what_is_left(resampled, capsys):
    estimates = [e for e in read_rows(resampled[0] / "4_partition", PartitionEstimate) if e.split == "train"]
    left = sum(bool(MENDED_BY_DRAWS.intersection(e.flags)) for e in estimates)
    assert 0 < left < len(estimates)
    assert main(["inspect", str(resampled[0]), "--json"]) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    assert (budget["trajectories"], budget["most"]) == (sum(e.n for e in estimates), max(e.n for e in estimates))
    assert budget["still_flagged"] == left
    assert main(["inspect", str(resampled[0])]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{left} prompts are still flagged for want of draws" in said


@pytest.mark.parametrize(
    "sections",
    [
        {"partition": {"level": 0.5}},
        {"training": {"inverse_temperature": 8}},
    ],
    ids=["level", "beta"],
)
def test_what_flags_depend_on_draws_the_rounds_again_and_keeps_the_first(resampled, tiny, tmp_path, sections):
    shutil.copytree(resampled[0], tmp_path / "run")
    changed = {name: tiny.get(name, {}) | values for name, values in sections.items()}
    said = run(written(tmp_path, values(tiny, tmp_path / "run", **changed)))
    assert done(said) == [*ROUNDS, "4_partition", "5_anchor"]


def test_a_regressor_has_no_say_in_what_is_drawn(resampled, tiny, tmp_path):
    shutil.copytree(resampled[0], tmp_path / "run")
    recipe = written(tmp_path, values(tiny, tmp_path / "run", partition={"regressor": True}))
    assert done(run(recipe, "scoring")) == []


def test_fewer_rounds_leave_the_others_out_of_the_estimate_and_of_the_sweep(resampled, tiny, tmp_path, capsys):
    shutil.copytree(resampled[0], tmp_path / "run")
    assert done(run(written(tmp_path, values(tiny, tmp_path / "run", rounds=1)))) == ["4_partition", "5_anchor"]
    first = {folder: len(read_rows(tmp_path / "run" / folder, ScoredTrajectory)) for folder in ("3_scoring", ROUNDS[1])}
    estimates = read_rows(tmp_path / "run" / "4_partition", PartitionEstimate)
    assert sum(e.n for e in estimates) == sum(first.values())
    # At the anchor's own inverse temperature a sweep over the trajectories finds the anchor's log Z again.
    assert main(["inspect", str(tmp_path / "run"), "--json", "--inverse-temperature", "2"]) == 0
    found = json.loads(capsys.readouterr().out)["sweep"][0]["log_z"]
    assert found == pytest.approx(np.median([e.log_z for e in estimates if e.split == "train"]), rel=1e-12)


def test_a_kill_between_plan_and_draws_ends_with_the_same_anchor(resampled, tiny, tmp_path):
    for name in ("1_tasks", "warmup", "2_proposals", "3_scoring"):
        shutil.copytree(resampled[0] / name, tmp_path / "run" / name)
    for folder in ROUNDS:
        shutil.rmtree(tmp_path / "run" / folder)
    recipe = written(tmp_path, values(tiny, tmp_path / "run"))
    for point in (("after", "2_proposals/round-1/allocation.json"), ("before", "3_scoring/round-2/manifest.json")):
        assert run_to_its_end(recipe, point) == -signal.SIGKILL, f"not reached: {point}"
    run(recipe)
    found, expected = (
        json.loads((d / "5_anchor" / "manifest.json").read_text()) for d in (tmp_path / "run", resampled[0])
    )
    assert (found["anchor"], found["content"]) == (expected["anchor"], expected["content"])


def test_a_proposal_that_says_no_log_probabilities_is_refused_by_the_field(resampled, tiny, tmp_path, monkeypatch):
    shutil.copytree(resampled[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / ROUNDS[0])

    def unknown(*given):
        *others, rows = given
        return further_draws(*others, [dataclasses.replace(row, log_proposal=None) for row in rows])

    monkeypatch.setattr("disa.pipeline.further_draws", unknown)
    with pytest.raises(DisaError, match="recipe, field proposals.resample: .* set proposals.resample: null"):
        run(written(tmp_path, values(tiny, tmp_path / "run")))


def test_a_second_run_does_nothing(resampled, tiny, tmp_path):
    shutil.copytree(resampled[0], tmp_path / "run")
    assert not [
        line for line in run(written(tmp_path, values(tiny, tmp_path / "run"))) if "finished earlier" not in line
    ]


def test_the_first_draws_have_the_identity_of_runs_without_it():
    assert ProposalsConfig(resample=ResampleConfig()).identity() == ProposalsConfig().identity()


@pytest.mark.parametrize(
    ("proposals", "problem"),
    [
        ({"resample": {}, "adaptive": {}}, "adaptive and resample exclude each other"),
        ({"resample": {}, "engine": "import", "files": ["rows.jsonl"]}, "resample need an engine that draws"),
        ({"resample": {"rounds": 0}}, "proposals.resample.rounds"),
    ],
)
def test_rounds_that_cannot_be_are_refused(proposals, problem, tiny_recipe, write_recipe):
    with pytest.raises(DisaError, match=problem):
        load_recipe(write_recipe(tiny_recipe | {"proposals": proposals}))
