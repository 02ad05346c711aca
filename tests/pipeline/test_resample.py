"""Drawing again for flagged prompts: rounds that double their trajectories before log Z is frozen."""

import json
import shutil
from collections import Counter

import pytest
import yaml

from disa.cli.main import main
from disa.errors import DisaError
from disa.partition import estimate_log_partition_batch
from disa.partition.draws import trajectory_columns
from disa.partition.verdict import MENDED_BY_DRAWS
from disa.pipeline import Pipeline
from disa.proposals.config import ProposalsConfig, ResampleConfig
from disa.recipe import load_recipe
from disa.records import PartitionEstimate, Prompt, ScoredTrajectory, read_rows

FIRST = 24
"""Trajectories of a training prompt before the rounds: some prompts have enough hits among them, others have not."""


def values(tiny, run_dir, **sections):
    """The tiny recipe with two rounds, up to the anchor."""
    proposals = tiny["proposals"] | {"per_prompt": FIRST, "resample": {"rounds": 2}}
    return tiny | {"run_dir": str(run_dir), "proposals": proposals} | sections


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
    """Run directory of a run with rounds, and what it said; only copies may change."""
    folder = tmp_path_factory.mktemp("resample")
    for name in ("1_tasks", "warmup"):
        shutil.copytree(finished_run / name, folder / "run" / name)
    return folder / "run", run(written(folder, values(tiny, folder / "run")))


def rows_of(folder):
    return read_rows(sorted(folder.rglob("*.parquet")), ScoredTrajectory)


def test_each_round_doubles_the_flagged_prompts_and_no_other(resampled, tiny):
    run_dir, said = resampled
    train = {p.prompt_id for p in read_rows(run_dir / "1_tasks", Prompt) if p.split == "train"}
    rows = read_rows(run_dir / "3_scoring", ScoredTrajectory)
    sizes = {p: FIRST for p in train}
    for number in (1, 2):
        drawn = [row for row in rows if row.prompt_id in train]
        batch = estimate_log_partition_batch(**trajectory_columns(sorted(train), drawn), beta=2.0)
        wanted = {p for p, flags in zip(sorted(train), batch.flags, strict=True) if MENDED_BY_DRAWS.intersection(flags)}
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
    assert main(["inspect", str(resampled[0]), "--json"]) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    assert (budget["trajectories"], budget["most"]) == (sum(e.n for e in estimates), max(e.n for e in estimates))
    assert budget["still_flagged"] == left
    assert main(["inspect", str(resampled[0])]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{left} prompts are still flagged for want of draws" in said


@pytest.mark.parametrize(
    "sections", [{"partition": {"level": 0.5}}, {"training": {"inverse_temperature": 8}}], ids=["level", "beta"]
)
def test_what_flags_depend_on_draws_the_rounds_again_and_keeps_the_first(resampled, tiny, tmp_path, sections):
    shutil.copytree(resampled[0], tmp_path / "run")
    changed = {name: tiny.get(name, {}) | values for name, values in sections.items()}
    done = [
        line.split(":")[0]
        for line in run(written(tmp_path, values(tiny, tmp_path / "run", **changed)))
        if "done in" in line
    ]
    assert [name for name in done if name[0] in "23"] == [
        f"{stage}/round-{number}" for number in (1, 2) for stage in ("2_proposals", "3_scoring")
    ]


def test_a_second_run_does_nothing(resampled, tiny, tmp_path):
    shutil.copytree(resampled[0], tmp_path / "run")
    assert not [
        line for line in run(written(tmp_path, values(tiny, tmp_path / "run"))) if "finished earlier" not in line
    ]


def test_runs_without_it_keep_their_identity():
    assert "resample" not in ProposalsConfig().identity()
    assert ProposalsConfig(resample=ResampleConfig()).identity()["resample"] == {"rounds": 2}


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
