"""A run on imported trajectories: the same anchor as the run that drew them, and what an unknown proposal allows."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from disa.errors import DisaError
from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory, Trajectory


def export(run, path, *fields):
    """The proposal's trajectories of a run as JSONL, with some fields."""
    rows = [row for row in read_rows(run / "2_proposals", Trajectory) if row.source == "proposal"]
    names = {"log_prob": "log_sampler"}
    with path.open("w") as file:
        for row in rows:
            values = {name: getattr(row, names.get(name, name)) for name in ("prompt_id", "completion", *fields)}
            file.write(json.dumps(values) + "\n")
    return str(path)


def run(recipe, until, *overrides):
    pipeline = Pipeline(load_recipe(recipe, list(overrides)), say=lambda line: None)
    pipeline.run(until)
    return pipeline


def importing(*files):
    return "proposals.engine=import", f"proposals.files={json.dumps(files)}"


def in_order(folder):
    """Rows by prompt, source and draw: the models of this machine take turns, an import's parts hold both."""
    return sorted(read_rows(folder, Trajectory), key=lambda row: (row.prompt_id, row.source, row.draw))


def test_imported_trajectories_give_the_anchor_of_the_run_that_drew_them(run_copy, finished_run, tmp_path):
    recipe, folder = run_copy
    file = export(folder, tmp_path / "rows.jsonl", "completion_ids", "truncated", "log_prob")
    run(recipe, "anchor", *importing(file))
    assert (folder / "superseded" / "2_proposals.0").is_dir()
    # To the last bit: JSON keeps doubles, and the reference's draws have the same random numbers.
    assert in_order(folder / "2_proposals") == in_order(finished_run / "2_proposals")
    found, expected = (read_rows(f / "5_anchor" / "anchor.parquet", PartitionEstimate) for f in (folder, finished_run))
    for one, other in zip(found, expected, strict=True):
        # The same float64 sums, over rows in another order.
        numbers = {k: pytest.approx(v, rel=1e-12) if isinstance(v, float) else v for k, v in asdict(other).items()}
        assert asdict(one) == numbers
    facts = json.loads((folder / "2_proposals" / "manifest.json").read_text())
    assert (facts["engine"], facts["retokenised"], facts["without_log_prob"]) == ("import", 0, 0)
    before = (folder / "2_proposals" / "manifest.json").stat().st_mtime_ns
    run(recipe, "proposals", *importing(file))
    assert (folder / "2_proposals" / "manifest.json").stat().st_mtime_ns == before
    # Another content of the same file is another run.
    lines = Path(file).read_text().splitlines(keepends=True)
    Path(file).write_text("".join(lines[1:]))
    run(recipe, "proposals", *importing(file))
    assert (
        len(read_rows(folder / "2_proposals", Trajectory))
        == len(read_rows(finished_run / "2_proposals", Trajectory)) - 1
    )


def test_a_runs_own_folder_imports_as_the_trajectories_it_holds(run_copy, finished_run):
    recipe, folder = run_copy
    files = sorted(str(path) for path in (finished_run / "2_proposals").glob("*.parquet"))
    run(recipe, "proposals", *importing(*files))
    assert in_order(folder / "2_proposals") == in_order(finished_run / "2_proposals")
    facts = json.loads((folder / "2_proposals" / "manifest.json").read_text())
    drawn = [row.source for row in read_rows(finished_run / "2_proposals", Trajectory)]
    assert (facts["left_out"], facts["without_log_prob"]) == (drawn.count("reference"), 0)


@pytest.fixture
def without_proposal(finished_run, tmp_path, tiny_recipe, write_recipe):
    """The tiny recipe on the finished run's reference, as a given model without a proposal."""
    shutil.copytree(finished_run / "warmup" / "reference", tmp_path / "reference")
    del tiny_recipe["warmup"]
    tiny_recipe["models"] = {"reference": str(tmp_path / "reference")}
    tiny_recipe["run_dir"] = str(tmp_path / "run")
    return write_recipe(tiny_recipe), tmp_path / "run"


def test_a_proposal_that_is_not_here_is_taken_at_its_word(without_proposal, finished_run, tmp_path):
    recipe, folder = without_proposal
    file = export(finished_run, tmp_path / "rows.jsonl", "completion_ids", "truncated", "log_prob")
    run(recipe, "partition", *importing(file), "proposals.reference_share=0")
    rows = read_rows(folder / "3_scoring", ScoredTrajectory)
    assert rows and all(row.log_proposal == row.log_sampler for row in rows)
    # The same trajectories were scored under the proposal's own weights: both passes round to float32.
    scored = {
        (r.prompt_id, r.draw): r
        for r in read_rows(finished_run / "3_scoring", ScoredTrajectory)
        if r.source == "proposal"
    }
    for row in rows:
        assert row.log_proposal == pytest.approx(scored[row.prompt_id, row.draw].log_proposal, abs=1e-4)
    parity = json.loads((folder / "3_scoring" / "parity.json").read_text())
    assert parity["unchecked"] == len(rows)
    flags = {flag for row in read_rows(folder / "4_partition", PartitionEstimate) for flag in row.flags}
    assert "no_reference" in flags and "text_level" not in flags


def test_an_unknown_proposal_gives_rewards_pass_rates_and_supervised_training_but_no_weights(
    without_proposal, finished_run, tmp_path
):
    recipe, folder = without_proposal
    settings = importing(export(finished_run, tmp_path / "rows.jsonl", "truncated"))
    with pytest.raises(
        DisaError, match="no log-probability under the proposal, so no importance weight.*models.proposal"
    ):
        run(recipe, "anchor", *settings)
    rows = read_rows(folder / "3_scoring", ScoredTrajectory)
    unknown = [row for row in rows if row.log_proposal is None]
    assert unknown == rows and {row.reward for row in rows} == {0.0, 1.0}
    # Reference rows have the reference's own numbers and are checked; the others are text in its tokens.
    assert all(row.retokenised == (row.source == "proposal") == (row.log_sampler is None) for row in rows)

    run(recipe, "partition", *settings, "partition.method=pass_rate")
    for row in read_rows(folder / "4_partition", PartitionEstimate):
        rewards = [r.reward for r in rows if r.prompt_id == row.prompt_id and r.source == "reference"]
        assert (row.n, row.n_reference, row.method) == (len(rewards), len(rewards), "pass_rate")
        assert row.mean_reward_reference == pytest.approx(sum(rewards) / len(rewards), abs=1e-12)

    recipe = load_recipe(recipe, [*settings, "training.methods=[sft]", "training.steps=1"])
    (trained,) = Pipeline(recipe, say=lambda line: None).training()
    assert (trained.path / "model" / "config.json").is_file()


def test_text_of_a_known_proposal_is_scored_in_the_references_tokens_and_flagged(run_copy, finished_run, tmp_path):
    recipe, folder = run_copy
    prompts = {p.prompt_id for p in read_rows(finished_run / "1_tasks", Prompt)}
    run(recipe, "partition", *importing(export(folder, tmp_path / "rows.jsonl", "truncated")))
    rows = read_rows(folder / "3_scoring", ScoredTrajectory)
    before = {(r.prompt_id, r.source, r.draw): r for r in read_rows(finished_run / "3_scoring", ScoredTrajectory)}
    for row in rows:
        # One character is one token here, so that the text has the tokens that were drawn.
        old = before[row.prompt_id, row.source, row.draw]
        assert row.completion_ids == old.completion_ids
        assert (row.log_ref, row.log_proposal) == (old.log_ref, old.log_proposal)
    estimates = read_rows(folder / "4_partition", PartitionEstimate)
    assert estimates and {row.prompt_id for row in estimates} <= prompts
    assert all("text_level" in row.flags for row in estimates)
    verdict = json.loads((folder / "4_partition" / "manifest.json").read_text())["verdict"]
    assert verdict["flags"]["text_level"]["prompts"] == len(estimates)
