"""Runs whose proposal is a bridge, a hinted or a tempered reference, from the recipe to the estimates."""

import numpy as np
import pytest

from disa.errors import DisaError
from disa.partition.log_weights import balance_log_weights
from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from disa.runs.parquet_rows import read_rows
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory

HINT = "{prompt}{solution}"


@pytest.fixture
def blended(run_copy, tiny_recipe, write_recipe):
    """The tiny run under another source of proposals; its tasks and warm-up are there already."""
    _, run_dir = run_copy

    def run(source, until="partition", **blend):
        proposals = tiny_recipe["proposals"] | {"source": source, "blend": blend, "per_prompt": 24}
        recipe = tiny_recipe | {"run_dir": str(run_dir), "proposals": proposals}
        lines = []
        Pipeline(load_recipe(write_recipe(recipe)), say=lines.append).run(until)
        return run_dir, [line.split(":")[0] for line in lines if "done in" in line]

    return run


@pytest.mark.parametrize(
    "source, blend",
    [
        ("bridge", {"lambdas": [0.3, 0.6]}),
        ("hinted", {"lambdas": [0.5], "hint": HINT}),
        ("tempered", {"temperatures": [1.3, 2.0]}),
    ],
)
def test_a_blend_is_drawn_scored_checked_and_weighed(source, blend, blended):
    run_dir, _ = blended(source, **blend)
    parity = read_json(run_dir / "3_scoring" / "parity.json")
    # Float32: the sampler keeps keys and values, the scorer makes one pass.
    assert parity["proposal"]["mean"] < 1e-5 and parity["proposal"]["trajectories"] > 100
    rows = read_rows(run_dir / "3_scoring", ScoredTrajectory)
    drawn = [row for row in rows if row.source == "proposal"]
    assert np.abs([row.log_ref - row.log_proposal for row in drawn]).max() > 0.1, "another law than the reference's"
    # Weights of the defensive mixture are at most 4, and 1 in expectation.
    w = np.exp(balance_log_weights(np.array([r.log_ref - r.log_proposal for r in rows]), np.full(len(rows), 0.25)))
    error = w.std(ddof=1) / np.sqrt(len(w))
    assert abs(w.mean() - 1) < 4 * error < 0.5
    assert len(read_rows(run_dir / "4_partition", PartitionEstimate)) == len(
        [p for p in read_rows(run_dir / "1_tasks", Prompt) if p.split != "warmup"]
    )


def test_a_bridge_of_weight_nought_or_one_is_reference_or_proposal(blended):
    run_dir, _ = blended("bridge", lambdas=[0.0])
    rows = read_rows(run_dir / "3_scoring", ScoredTrajectory)
    assert all(row.log_proposal == row.log_ref for row in rows)
    run_dir, done = blended("bridge", lambdas=[1.0])
    assert "2_proposals" in done, "other lambdas are another law"
    at_one = {(r.prompt_id, r.draw, r.source): r for r in read_rows(run_dir / "3_scoring", ScoredTrajectory)}
    run_dir, _ = blended("proposal")
    plain = {(r.prompt_id, r.draw, r.source): r for r in read_rows(run_dir / "3_scoring", ScoredTrajectory)}
    assert at_one.keys() == plain.keys()
    for key, row in plain.items():
        assert at_one[key].completion_ids == row.completion_ids
        # Float32 sums of at most seven tokens, in passes of one or two models.
        assert at_one[key].log_proposal == pytest.approx(row.log_proposal, abs=1e-4)


def test_a_bridge_without_a_proposal_is_refused(tiny_recipe, write_recipe):
    tiny_recipe["warmup"]["proposal"] = None
    tiny_recipe["proposals"]["source"] = "bridge"
    with pytest.raises(DisaError, match="source: bridge leads to a proposal, give models.proposal"):
        load_recipe(write_recipe(tiny_recipe))


@pytest.mark.parametrize(
    "blend, message",
    [
        ({"lambdas": [0.5, 1.2]}, "lambdas hold 1.2, allowed are numbers from 0 to 1"),
        ({"temperatures": [0]}, "temperatures hold 0.0, allowed are numbers above 0"),
        ({"hint": "{prompt}"}, r"hint has no \{solution\}"),
    ],
)
def test_settings_out_of_range_are_named(blend, message, tiny_recipe, write_recipe):
    tiny_recipe["proposals"]["blend"] = blend
    with pytest.raises(DisaError, match=message):
        load_recipe(write_recipe(tiny_recipe))


def test_a_pilot_measures_every_candidate_chooses_and_says_why(run_copy, tiny_recipe, write_recipe):
    _, run_dir = run_copy
    blend = {"lambdas": [0.3, 0.6], "temperatures": [1.5], "hint": HINT}
    own = {"source": "auto", "blend": blend, "pilot": {"prompts": 4, "draws": 6}, "per_prompt": 24}
    recipe = tiny_recipe | {"run_dir": str(run_dir), "proposals": tiny_recipe["proposals"] | own}
    lines = []
    pipeline = Pipeline(load_recipe(write_recipe(recipe)), say=lines.append)
    pipeline.run("scoring")
    said = read_json(run_dir / "pilot" / "manifest.json")
    names = [row["name"] for row in said["candidates"]]
    bridges = ["bridge 0.3, 0.6", "bridge 0.3", "bridge 0.6"]
    hinted = [name.replace("bridge", "hinted") for name in bridges]
    assert names == ["reference", "proposal", *bridges, *hinted, "tempered 1.5"]
    assert any(said["why"] in line and said["chosen"] in line for line in lines)
    assert said["left_out"] == {}
    best = min(said["candidates"], key=lambda row: row["error"])
    clear = best["gain"] > best["gain_error"]
    assert said["chosen"] == (best["name"] if clear else "reference")
    drawn = read_json(run_dir / "2_proposals" / "manifest.json")["configuration"]["proposals"]
    assert drawn["source"] == said["choice"]["source"]
    rows = read_rows(run_dir / "3_scoring", ScoredTrajectory)
    assert {row.source for row in rows} == ({"reference", "proposal"} if clear else {"reference"})
    again = []
    Pipeline(load_recipe(write_recipe(recipe)), say=again.append).run("scoring")
    assert not any("done in" in line for line in again), "what is finished is drawn again"


def test_a_pilot_says_which_source_is_no_candidate_and_why(run_copy, tiny_recipe, write_recipe, monkeypatch):
    from disa.partition import pilot

    def blends(config, *others):
        if config.source == "hinted":
            raise DisaError("prompt p1 has no worked solution")
        return blends_of(config, *others)

    blends_of = pilot.blends_of
    monkeypatch.setattr(pilot, "blends_of", blends)
    _, run_dir = run_copy
    own = {"source": "auto", "pilot": {"prompts": 4, "draws": 6}, "per_prompt": 24}
    recipe = tiny_recipe | {"run_dir": str(run_dir), "proposals": tiny_recipe["proposals"] | own}
    lines = []
    Pipeline(load_recipe(write_recipe(recipe)), say=lines.append).run("proposals")
    reason = "prompt p1 has no worked solution"
    assert read_json(run_dir / "pilot" / "manifest.json")["left_out"] == {"hinted": reason}
    assert any(line.strip() == f"hinted is no candidate: {reason}" for line in lines)
