"""An adaptive budget through the pipeline: pilot, rounds, one anchor of them all."""

import json
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
import yaml
from killed_run import run_to_its_end, start

from disa.anchor import Anchor
from disa.cli.main import main
from disa.errors import DisaError
from disa.partition import estimate_log_partition_batch
from disa.partition.draws import trajectory_columns
from disa.pipeline import Pipeline
from disa.proposals.config import AdaptiveConfig, ProposalsConfig
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory, Trajectory

ADAPTIVE = {"pilot": 4, "cap": 40, "precision": 0.01, "rounds": 2}
ROUNDS = ["2_proposals/round-1", "3_scoring/round-1", "2_proposals/round-2", "3_scoring/round-2"]
POINTS = [
    ("after", "2_proposals/part-000002-reference.parquet"),
    ("before", "2_proposals/round-1/allocation.json"),
    ("after", "2_proposals/round-1/allocation.json"),
    ("after", "2_proposals/round-1/part-000000-reference.parquet"),
    ("after", "3_scoring/round-1/parity.json"),
    ("before", "2_proposals/round-2/manifest.json"),
    ("before", "3_scoring/round-2/manifest.json"),
    ("before", "4_partition/manifest.json"),
]


def values(tiny_recipe, run_dir, **adaptive):
    """The tiny recipe with an adaptive budget and the shortest possible rest."""
    return tiny_recipe | {
        "run_dir": str(run_dir),
        "proposals": tiny_recipe["proposals"] | {"adaptive": ADAPTIVE | adaptive},
        "training": tiny_recipe["training"] | {"methods": ["disa_forward"], "steps": 1},
        "evaluation": {"samples_per_prompt": 1, "ks": [1], "train_prompts": 0},
    }


def run(recipe, until="anchor", **arguments):
    lines = []
    Pipeline(load_recipe(recipe), say=lines.append, **arguments).run(until)
    return [line.split(":")[0] for line in lines if "done in" in line]


def scored(run_dir):
    files = [path for path in (run_dir / "3_scoring").rglob("*.parquet") if path.parent.name != "reference"]
    return read_rows(sorted(files), ScoredTrajectory)


@pytest.fixture(scope="module")
def undisturbed(finished_run, tmp_path_factory):
    """Run directory of an adaptive run from the tiny run's tasks and models to a policy; only copies may change."""
    folder = tmp_path_factory.mktemp("adaptive")
    tiny = yaml.safe_load((finished_run.parent / "recipe.yaml").read_text())
    for name in ("1_tasks", "warmup"):
        shutil.copytree(finished_run / name, folder / "run" / name)
    (folder / "recipe.json").write_text(json.dumps(values(tiny, folder / "run")))  # JSON is YAML
    assert [s for s in run(folder / "recipe.json", "training") if s.split("/")[0] in ("2_proposals", "3_scoring")] == [
        "2_proposals",
        "3_scoring",
        *ROUNDS,
    ]
    return folder / "run"


def test_the_whole_budget_is_drawn_once_scored_and_estimated(undisturbed, tiny_recipe):
    train = {p.prompt_id for p in read_rows(undisturbed / "1_tasks", Prompt) if p.split == "train"}
    drawn = read_rows(sorted((undisturbed / "2_proposals").rglob("*.parquet")), Trajectory)
    rows = scored(undisturbed)
    keys = [(row.prompt_id, row.source, row.draw) for row in drawn]
    assert sorted(keys) == sorted((row.prompt_id, row.source, row.draw) for row in rows)
    numbers = {pair: [k[2] for k in keys if k[:2] == pair] for pair in {k[:2] for k in keys}}
    assert all(sorted(found) == list(range(len(found))) for found in numbers.values())

    counts = Counter(row.prompt_id for row in rows)
    # Neither cap nor precision is in reach of all prompts, so that the budget is spent to the last draw.
    assert sum(counts[p] for p in train) == 6 * tiny_recipe["proposals"]["per_prompt"]
    assert all(ADAPTIVE["pilot"] <= counts[p] <= ADAPTIVE["cap"] for p in train)
    assert len({counts[p] for p in train}) > 1
    assert {counts[p] for p in counts.keys() - train} == {tiny_recipe["proposals"]["per_heldout_prompt"]}

    estimates = read_rows(undisturbed / "4_partition", PartitionEstimate)
    assert {e.prompt_id: e.n for e in estimates} == dict(counts)
    again = estimate_log_partition_batch(**trajectory_columns([e.prompt_id for e in estimates], rows), beta=2.0)
    # The rows come in another order here, so sums may round differently.
    assert again.log_z == pytest.approx([e.log_z for e in estimates], rel=1e-12)


def test_every_round_and_the_training_name_what_they_were_made_from(undisturbed):
    manifests = {str(p.parent.relative_to(undisturbed)): json.loads(p.read_text()) for p in undisturbed.rglob("man*")}
    contents = {label: m["content"] for label, m in manifests.items()}
    scores = {"scoring": contents["3_scoring"], "round-1": contents["3_scoring/round-1"]}
    assert scores.items() <= manifests["2_proposals/round-2"]["inputs"].items()
    scores |= {"round-2": contents["3_scoring/round-2"]}
    assert manifests["4_partition"]["inputs"] == scores
    assert scores.items() <= manifests["6_training/disa_forward"]["inputs"].items()


def test_two_workers_make_the_same_anchor_as_one(undisturbed, tiny_recipe, write_recipe, tmp_path):
    for name in ("1_tasks", "warmup"):
        shutil.copytree(undisturbed / name, tmp_path / "run" / name)
    recipe = write_recipe(values(tiny_recipe, tmp_path / "run"))
    workers = [start(recipe, None, "--until", "anchor") for _ in range(2)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    found, expected = (
        json.loads((d / "5_anchor" / "manifest.json").read_text()) for d in (tmp_path / "run", undisturbed)
    )
    assert (found["anchor"], found["content"]) == (expected["anchor"], expected["content"])
    assert scored(tmp_path / "run") == scored(undisturbed)
    assert not (tmp_path / "run" / "superseded").exists()


def test_a_killed_run_ends_with_the_same_anchor(undisturbed, tiny_recipe, write_recipe, tmp_path):
    for name in ("1_tasks", "warmup"):
        shutil.copytree(undisturbed / name, tmp_path / "run" / name)
    recipe = write_recipe(values(tiny_recipe, tmp_path / "run"))
    for point in POINTS:
        assert run_to_its_end(recipe, point) == -signal.SIGKILL, f"not reached: {point}"
    run(recipe)
    found, expected = (
        json.loads((d / "5_anchor" / "manifest.json").read_text()) for d in (tmp_path / "run", undisturbed)
    )
    assert (found["anchor"], found["content"]) == (expected["anchor"], expected["content"])
    assert scored(tmp_path / "run") == scored(undisturbed)
    assert not (tmp_path / "run" / "superseded").exists()


def test_a_second_run_does_nothing_and_another_beta_keeps_the_pilot(undisturbed, tiny_recipe, write_recipe, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    recipe = values(tiny_recipe, tmp_path / "run")
    assert run(write_recipe(recipe), "training") == []
    recipe["training"]["inverse_temperature"] = 4
    assert run(write_recipe(recipe)) == [*ROUNDS, "4_partition", "5_anchor"]


def test_the_rounds_belong_to_the_scoring_stage(undisturbed, tiny_recipe, write_recipe, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "3_scoring" / "round-2")
    recipe = write_recipe(values(tiny_recipe, tmp_path / "run"))
    with pytest.raises(DisaError, match="stage scoring has no finished output"):
        run(recipe, "partition", may_work=("partition",))
    assert run(recipe, "scoring", may_work=("scoring",)) == ["3_scoring/round-2"]
    assert run(recipe) == []


def test_a_precision_reached_by_the_pilot_leaves_empty_rounds(undisturbed, tiny_recipe, write_recipe, tmp_path, capsys):
    for name in ("1_tasks", "warmup"):
        shutil.copytree(undisturbed / name, tmp_path / "run" / name)
    # hits_ess of 1e-4 is reached by every prompt with a success; the others go on to the cap.
    run(write_recipe(values(tiny_recipe, tmp_path / "run", precision=100.0, cap=5)))
    anchor = Anchor.load(tmp_path / "run" / "5_anchor")
    train = [row for row in anchor.estimates.values() if row.split == "train"]
    # Those that stop at the pilot's four have a success; a fifth draw may bring the others their first.
    assert {row.n for row in train} == {4, 5}
    assert all(row.hits_ess >= 1e-4 for row in train if row.n == 4)
    assert anchor.evidence["budget"]["reached"] + anchor.evidence["budget"]["capped"] == 6
    capped = {row.prompt_id for row in train if "capped" in row.flags}
    assert len(capped) == anchor.evidence["budget"]["capped"]
    assert all(row.n == 5 and row.hits_ess < 1e-4 for row in train if row.prompt_id in capped)
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert (f"capped ({len(capped)}): an adaptive budget" in capsys.readouterr().out) == bool(capped)


def test_inspect_says_how_the_budget_was_spent(undisturbed, capsys):
    counts = sorted(Counter(row.prompt_id for row in scored(undisturbed)).values(), reverse=True)
    assert main(["inspect", str(undisturbed), "--json"]) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    assert (budget["trajectories"], budget["prompts"], budget["cap"]) == (96, 6, 40)
    assert budget["most"] == counts[0] and budget["fewest"] < 16 < budget["most"]
    assert main(["inspect", str(undisturbed)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"96 trajectories over 6 training prompts, {budget['fewest']} to {budget['most']} a prompt" in said


def test_an_even_budget_has_no_rounds(finished_run):
    assert ProposalsConfig(adaptive=AdaptiveConfig()).identity() != ProposalsConfig().identity()
    manifest = json.loads((finished_run / "4_partition" / "manifest.json").read_text())
    assert manifest["inputs"].keys() == {"scoring"} and manifest["budget"] is None


@pytest.mark.parametrize("limits", [{"pilot": 65}, {"pilot": 16, "cap": 8}])
def test_a_pilot_beyond_the_budget_or_the_cap_is_refused(limits, tiny_recipe, write_recipe):
    tiny_recipe["proposals"] = {"adaptive": limits}
    with pytest.raises(DisaError, match="adaptive.pilot .* exceeds per_prompt 64 or adaptive.cap"):
        load_recipe(write_recipe(tiny_recipe))


def test_the_draws_of_a_prompt_are_those_of_an_even_budget(undisturbed, finished_run):
    even = {(t.prompt_id, t.source, t.draw): t for t in read_rows(finished_run / "2_proposals", Trajectory)}
    drawn = read_rows(sorted((undisturbed / "2_proposals").rglob("*.parquet")), Trajectory)
    pairs = [(even[key], t) for t in drawn if (key := (t.prompt_id, t.source, t.draw)) in even]
    assert len(pairs) > 50
    assert all(a.completion_ids == b.completion_ids for a, b in pairs)
    # Another batch pads differently, which float32 forward passes round differently.
    assert np.allclose([a.log_sampler for a, _ in pairs], [b.log_sampler for _, b in pairs], atol=1e-4)
