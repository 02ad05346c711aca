"""A comparison end to end: who is trained with what, on which prompts it is judged, and that nothing is done twice."""

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import pytest
import yaml

from disa.cli.main import main
from disa.comparison.grid import ComparisonCell, Grid
from disa.errors import DisaError
from disa.evaluation.metrics import kl_to_target
from disa.pipeline import NotFinished, Pipeline
from disa.recipe import load_recipe
from disa.runs.locks import RunDirectoryBusy, claim, exclusive
from disa.runs.parquet_rows import read_rows, write_rows
from disa.runs.records import EvaluationRecord, PartitionEstimate, Prompt, ScoredTrajectory

METHODS, SEEDS = ("sft", "vargrad", "disa"), (0, 1)


@pytest.fixture(scope="module")
def compared(finished_run, tmp_path_factory):
    """Folder with ``recipe.yaml`` and ``run``, all policies finished. Read it; change only copies."""
    folder = tmp_path_factory.mktemp("compared")
    recipe = {
        "run_dir": str(folder / "run"),
        "tasks": {
            "name": "graph_coloring",
            "vertices": 5,
            "colors": 4,
            "train_prompts": 8,
            "validation_prompts": 3,
            "heldout_prompts": 4,
            "warmup_prompts": 0,
        },
        "models": {name: str(finished_run / "warmup" / name) for name in ("reference", "proposal")},
        "sampling": {"max_completion_length": 7},
        "proposals": {"per_prompt": 12, "per_heldout_prompt": 8},
        "training": {
            "inverse_temperature": 2,
            "steps": 4,
            "prompts_per_step": 2,
            "completions_per_prompt": 4,
            "learning_rate": 0.003,
            "warmup_steps": 1,
            "save_every": 2,
        },
        "evaluation": {"samples_per_prompt": 4, "ks": [1, 4], "train_prompts": 2},
        "comparison": {
            "methods": list(METHODS),
            "seeds": list(SEEDS),
            "search": {"points": [{"learning_rate": 0.003}, {"learning_rate": 0.03}], "steps": 2},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    say_compare(folder / "recipe.yaml")
    return folder


@pytest.fixture
def compared_copy(compared, tmp_path, monkeypatch):
    """A copy that a test may change, as (recipe file, run directory); its figures are not drawn again."""
    monkeypatch.setattr("disa.comparison.figures.comparison_figures", lambda results: [])
    shutil.copytree(compared / "run", tmp_path / "run", copy_function=shutil.copy2)
    values = yaml.safe_load((compared / "recipe.yaml").read_text())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values | {"run_dir": str(tmp_path / "run")}))
    return recipe, tmp_path / "run"


def say_compare(recipe, *settings, **asked):
    """Compare; returns the lines that were said."""
    from disa.comparison.run import run_comparison

    lines = []
    run_comparison(load_recipe(recipe, list(settings)), say=lines.append, **asked)
    return lines


def policies(run_dir):
    """Folders of all finished policies and of the reference, relative to the comparison's."""
    root = run_dir / "comparison"
    return {str(p.parent.parent.relative_to(root)) for p in root.glob("**/evaluation/manifest.json")}


def records(run_dir, policy):
    return read_rows(run_dir / "comparison" / policy / "evaluation", EvaluationRecord)


def results(run_dir):
    return json.loads((run_dir / "comparison" / "results.json").read_text())


def state(run_dir):
    stages = [p for name in ("training", "evaluation") for p in run_dir.glob(f"comparison/**/{name}/**/*")]
    return {str(p): p.stat().st_mtime_ns for p in stages if p.is_file()}


def test_every_candidate_is_trained_once_and_the_chosen_one_with_every_seed(compared):
    run_dir, found = compared / "run", results(compared / "run")
    expected = {"reference"}
    for method in METHODS:
        expected |= {f"{method}/learning_rate={rate}/search" for rate in (0.003, 0.03)}
        chosen = found["methods"][method]["point"]["learning_rate"]
        expected |= {f"{method}/learning_rate={chosen}/seed-{seed}" for seed in SEEDS}
    assert policies(run_dir) == expected
    assert found["missing"] == 0


def test_the_search_sees_validation_prompts_only_and_held_out_ones_are_for_what_it_chose(compared):
    run_dir, found = compared / "run", results(compared / "run")
    split_of = {p.prompt_id: p.split for p in read_rows(run_dir / "1_tasks", Prompt)}
    for policy in policies(run_dir):
        seen = {split_of[row.prompt_id] for row in records(run_dir, policy)}
        assert seen == ({"validation"} if policy.endswith("search") else {"heldout", "validation", "train"}), policy
    for method, facts in found["methods"].items():
        scores = {}
        for candidate in facts["search"]:
            rows = records(run_dir, f"{method}/learning_rate={candidate['point']['learning_rate']}/search")
            scores[candidate["point"]["learning_rate"]] = statistics.mean(row.reward >= 1 for row in rows)
            # Equally many samples per prompt: the mean over prompts of means is the mean of all.
            assert candidate["score"] == pytest.approx(scores[candidate["point"]["learning_rate"]], abs=1e-12)
        assert scores[facts["point"]["learning_rate"]] == max(scores.values())


def test_what_a_policy_was_trained_with_is_its_point_its_seed_and_its_budget(compared):
    run_dir, found = compared / "run", results(compared / "run")
    for path in (run_dir / "comparison").glob("*/*/*/training/manifest.json"):
        method, point, role, _, _ = path.relative_to(run_dir / "comparison").parts
        training = json.loads(path.read_text())["configuration"]["training"]
        assert f"learning_rate={training['learning_rate']}" == point
        budget = found["methods"][method]["budget"]
        assert training["steps"] == (2 if role == "search" else budget["steps"])
        assert training["seed"] == (1000 if role == "search" else int(role.removeprefix("seed-")))
        assert training["prompts_per_step"] == budget["prompts_per_step"]
    # 8 prompts of 12 trajectories over 4 steps are 24 completions per step, six groups of four.
    assert [found["methods"][m]["budget"]["drawn_per_step"] for m in METHODS] == [0, 32, 8]
    assert [found["methods"][m]["budget"]["stored_per_step"] for m in METHODS] == [8, 0, 0]
    assert [found["methods"][m]["budget"]["completions"] for m in METHODS] == [96, 128, 128]


def test_metrics_are_means_over_seeds_of_means_over_prompts(compared):
    run_dir, found = compared / "run", results(compared / "run")
    log_z = {row.prompt_id: row.log_z for row in read_rows(run_dir / "5_anchor" / "anchor.parquet", PartitionEstimate)}
    values = {}
    for method in METHODS:
        rate = found["methods"][method]["point"]["learning_rate"]
        for seed in SEEDS:
            rows = [r for r in records(run_dir, f"{method}/learning_rate={rate}/seed-{seed}") if r.split == "heldout"]
            by_prompt = {p: [r for r in rows if r.prompt_id == p] for p in {r.prompt_id for r in rows}}
            assert {len(group) for group in by_prompt.values()} == {4} and len(by_prompt) == 4
            values[method, seed] = (
                statistics.mean(statistics.mean(r.reward >= 1 for r in g) for g in by_prompt.values()),
                statistics.mean(
                    kl_to_target(
                        [r.log_pi for r in g], [r.log_ref for r in g], [r.reward for r in g], log_z=log_z[p], beta=2
                    )
                    for p, g in by_prompt.items()
                ),
            )
    best = found["best_mode"]
    assert best == "disa"
    for method in METHODS:
        for i, metric in enumerate(("mean@4", "kl_to_target")):
            mine = [values[method, seed][i] for seed in SEEDS]
            number = found["methods"][method]["over_seeds"]["heldout"][metric]
            assert number["value"] == pytest.approx(statistics.mean(mine), abs=1e-12)
            assert number["se"] == pytest.approx(statistics.stdev(mine) / 2**0.5, abs=1e-12)
            difference = found["methods"][method]["minus_best"]["heldout"][metric]
            expected = statistics.mean(values[method, seed][i] - values[best, seed][i] for seed in SEEDS)
            assert difference["value"] == pytest.approx(expected, abs=1e-12)


def test_the_same_command_again_trains_nothing(compared_copy):
    recipe, run_dir = compared_copy
    before = state(run_dir)
    assert say_compare(recipe) == []
    assert state(run_dir) == before


def test_an_added_seed_trains_that_seed_alone(compared_copy):
    recipe, run_dir = compared_copy
    before = state(run_dir)
    lines = say_compare(recipe, "comparison.seeds=[0,1,7]", methods=("sft",))
    assert [line.split(":")[0].split("/")[-1] for line in lines] == ["seed-7"]
    assert before.items() <= state(run_dir).items()
    found = results(run_dir)
    # Two methods lack the new seed; what they have still counts.
    assert found["missing"] == 2
    assert [len(found["methods"][m]["seeds"]) for m in METHODS] == [3, 2, 2]


def test_another_criterion_searches_nothing_again(compared_copy):
    recipe, run_dir = compared_copy
    lines = say_compare(recipe, "comparison.search.criterion=kl_to_target")
    assert all("search" not in line for line in lines)
    for facts in results(run_dir)["methods"].values():
        scores = {c["point"]["learning_rate"]: c["score"] for c in facts["search"]}
        assert scores[facts["point"]["learning_rate"]] == min(scores.values())


def test_a_policy_lost_half_way_is_finished_with_the_same_result(compared_copy):
    recipe, run_dir = compared_copy
    before = results(run_dir)
    rate = before["methods"]["vargrad"]["point"]["learning_rate"]
    policy = run_dir / "comparison" / "vargrad" / f"learning_rate={rate}" / "seed-1"
    shutil.rmtree(policy / "evaluation")
    (policy / "training" / "manifest.json").unlink()
    shutil.rmtree(policy / "training" / "model")
    lines = say_compare(recipe)
    assert [line.split(":")[0] for line in lines] == [str(policy.relative_to(run_dir))]
    after = results(run_dir)
    for found in (before, after):
        found["recipe"] = found["methods"]["vargrad"]["seconds"] = None
    assert after == before


def test_no_checkpoint_is_left_behind(compared):
    assert list((compared / "run" / "comparison").glob("**/checkpoint*")) == []


def test_a_policy_that_another_process_works_on_is_left_to_it(compared_copy, monkeypatch):
    recipe, run_dir = compared_copy
    grid = Grid(load_recipe(recipe))
    (cell, *_) = grid.finals("sft", SEEDS)
    folder = run_dir / grid.folder(cell)
    shutil.rmtree(folder / "evaluation")
    looks, other = [], contextlib.ExitStack()
    # The lock belongs to the open file and not to the process: a second one in this process is refused like any.
    assert other.enter_context(claim(folder))

    def look(seconds):
        looks.append((folder / "evaluation" / "manifest.json").exists())
        if len(looks) == 3:
            other.close()

    monkeypatch.setattr("disa.runs.cells.time.sleep", look)
    lines = say_compare(recipe)
    # It waited while the other held the policy, said so once, and took it over when that one was gone.
    assert looks == [False] * 3
    assert lines[0] == "waiting for remaining cells that another process works on"
    assert [line.split(":")[0] for line in lines[1:]] == [grid.folder(cell)]


@pytest.fixture
def two_policies_to_do(compared_copy, monkeypatch):
    """A copy with both seeds of vargrad to evaluate, as (recipe file, run directory, function to fail the first)."""
    recipe, run_dir = compared_copy
    folders = sorted(run_dir.glob("comparison/vargrad/*/seed-*"))
    for folder in folders:
        shutil.rmtree(folder / "evaluation")
    names, work = [str(f.relative_to(run_dir)) for f in folders], Grid.work

    def fail(error):
        def failing(grid, cell):
            if grid.folder(cell) == names[0]:
                raise error
            work(grid, cell)

        monkeypatch.setattr(Grid, "work", failing)
        return names

    return recipe, run_dir, fail


def test_a_policy_that_fails_stops_no_other_and_the_command_ends_with_its_error(two_policies_to_do, capsys):
    recipe, run_dir, fail = two_policies_to_do
    first, second = fail(DisaError("no trajectory\nhas [a] reward", where="training", fix="draw more"))
    assert main(["compare", str(recipe)]) == 2
    printed = capsys.readouterr()
    said = [line for line in printed.out.splitlines() if line.startswith("comparison/")]
    assert said[0] == f"{first}: failed, training: no trajectory has [a] reward. Fix: draw more"
    assert said[1].startswith(f"{second}: done in")
    name = first.removeprefix("comparison/")
    assert printed.err == (
        f"disa: comparison: 1 failed ({name}), the first with: training: no trajectory has [a] reward. Fix: draw more\n"
    )
    # The table of all others is there.
    assert (run_dir / "comparison" / "table.txt").read_text() in printed.out
    assert list(results(run_dir)["methods"]["vargrad"]["seeds"]) == ["1"]
    assert results(run_dir)["missing"] == 1


def test_a_bug_still_ends_the_command(two_policies_to_do):
    recipe, _, fail = two_policies_to_do
    fail(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        say_compare(recipe)


def test_a_method_whose_search_fails_is_left_out_and_named(compared_copy, capsys):
    recipe, run_dir = compared_copy
    # With twelve trajectories per prompt some log Z are flagged, which this setting refuses to train on.
    assert main(["compare", str(recipe), "--set", "training.flagged=refuse"]) == 2
    printed = capsys.readouterr()
    said = [line.split(",")[0] for line in printed.out.splitlines() if line.startswith("comparison/")]
    candidates = [f"comparison/disa/learning_rate={rate}/search" for rate in (0.003, 0.03)]
    reason = "comparison/disa: no seed is trained"
    assert said == [*(f"{candidate}: failed" for candidate in candidates), reason]
    assert "disa: comparison: 2 failed (disa/learning_rate=0.003/search, disa/learning_rate=0.03/search)" in printed.err
    assert "are flagged" in printed.err and printed.err.count("\n") == 1
    assert list(results(run_dir)["methods"]) == ["sft", "vargrad"]


def test_a_stage_that_is_missing_while_working_is_told_as_it_is(compared_copy, monkeypatch):
    def missing(recipe):
        raise NotFinished("stage anchor has no finished output")

    monkeypatch.setattr("disa.comparison.run.Grid", missing)
    with pytest.raises(NotFinished, match="stage anchor has no finished output"):
        say_compare(compared_copy[0])


def test_only_the_same_comparison_may_join_one_that_is_at_work(compared_copy):
    from disa.comparison.run import shared_run

    path, run_dir = compared_copy
    recipe = load_recipe(path)
    # That a run has been here before says nothing about who is here now.
    Pipeline(recipe, say=lambda line: None).run("anchor")
    with shared_run(recipe):
        with shared_run(recipe):
            pass
        with pytest.raises(RunDirectoryBusy), exclusive(run_dir):
            pass
        with pytest.raises(RunDirectoryBusy, match="with other settings"):
            Pipeline(recipe, say=lambda line: None).run("anchor")
        # Its policies would go to the same folders, and each would move the other's aside.
        with pytest.raises(RunDirectoryBusy, match="with other settings"):
            say_compare(path, "training.steps=8")
    Pipeline(recipe, say=lambda line: None).run("anchor")


def test_a_table_of_nothing_makes_nothing(compared_copy, tmp_path):
    with pytest.raises(DisaError, match="no policy is finished yet"):
        say_compare(compared_copy[0], f"run_dir={tmp_path / 'fresh'}", work=False)
    assert not list((tmp_path / "fresh").glob("[0-9]*"))


def test_prompts_to_choose_on_are_asked_for_before_anything_is_drawn(compared_copy, tmp_path):
    recipe, _ = compared_copy
    fresh = f"run_dir={tmp_path / 'fresh'}"
    with pytest.raises(DisaError, match="chooses on validation prompts, found none"):
        say_compare(recipe, "tasks.validation_prompts=0", fresh)
    assert not (tmp_path / "fresh" / "2_proposals").exists()


def test_a_budget_that_needs_more_prompts_than_there_are_is_refused(compared_copy):
    recipe, _ = compared_copy
    with pytest.raises(DisaError, match="prompts_per_step is 14, but vargrad has 8 training prompts.*budget: steps"):
        say_compare(recipe, "training.steps=2")


def test_offline_methods_draw_nothing_and_take_steps_of_any_size(compared):
    settings = ["comparison.methods=[sft]", "training.prompts_per_step=9"]
    assert Grid(load_recipe(compared / "recipe.yaml", [*settings, "training.methods=[sft]"])).budgets["sft"]
    with pytest.raises(DisaError, match="is 15, but vargrad has 8 training prompts"):
        Grid(
            load_recipe(
                compared / "recipe.yaml", [*settings, "comparison.methods=[sft,vargrad]", "training.methods=[sft]"]
            )
        )


def test_a_search_by_distance_needs_log_z_of_the_validation_prompts(compared_copy):
    recipe, _ = compared_copy
    settings = ("proposals.per_heldout_prompt=0", "comparison.search.criterion=kl_to_target")
    with pytest.raises(DisaError, match="validation prompts have no log Z"):
        say_compare(recipe, *settings)


def test_a_single_candidate_needs_no_search(compared):
    grid = Grid(load_recipe(compared / "recipe.yaml", ["comparison.search.points=[{learning_rate: 0.003}]"]))
    assert grid.candidates("sft") == []
    assert grid.finals("sft", SEEDS) == [ComparisonCell("sft", (("learning_rate", 0.003),), seed) for seed in SEEDS]


def test_the_budget_counts_the_trajectories_that_are_there(compared):
    train = {p.prompt_id for p in read_rows(compared / "run" / "1_tasks", Prompt) if p.split == "train"}
    stored = [t for t in read_rows(compared / "run" / "3_scoring", ScoredTrajectory) if t.prompt_id in train]
    assert results(compared / "run")["methods"]["sft"]["budget"]["read"] == len(stored) == 96


def test_the_command_prints_the_table_that_it_wrote(compared, capsys):
    assert main(["compare", str(compared / "recipe.yaml"), "--table"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert (compared / "run" / "comparison" / "table.txt").read_text() in printed.out
    assert printed.out.rstrip().endswith(str(compared / "run" / "comparison" / "report.html"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "grpo"], "--methods: found 'grpo'. Fix: the recipe has sft, vargrad, disa"),
        (["--seeds", "5"], "--seeds: found '5'. Fix: the recipe has 0, 1"),
        (["--set", "comparison=null"], "the recipe has no comparison section"),
        (["--table", "--set", "run_dir=RUN"], "no policy is finished yet"),
    ],
)
def test_what_cannot_be_compared_exits_with_2(compared, tmp_path, capsys, arguments, message):
    arguments = [a.replace("RUN", str(tmp_path / "run")) for a in arguments]
    assert main(["compare", str(compared / "recipe.yaml"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_a_search_says_of_its_learning_rates_stands_beneath_its_table_in_every_form(compared):
    folder = compared / "run" / "comparison"
    chosen = {m: facts["point"]["learning_rate"] for m, facts in results(compared / "run")["methods"].items()}
    for rate, end, better in ((0.03, "largest", "larger"), (0.003, "smallest", "smaller")):
        names = ", ".join(m for m in METHODS if chosen[m] == rate)
        note = f"The {end} learning rate tried was chosen for {names}: a {better} one may be better."
        for form in ("table.txt", "table.md", "report.html"):
            assert (note in (folder / form).read_text()) == bool(names), form


def test_the_page_asks_nothing_of_anyone_and_shows_every_figure(compared):
    folder = compared / "run" / "comparison"
    page = (folder / "report.html").read_text()
    # Names of XML's own are no requests.
    asked = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http:" not in asked and "https:" not in asked and page.count("<script") == 1
    figures = sorted(p.stem for p in (folder / "figures").iterdir())
    assert figures == ["kl_to_target", "quality_diversity", "reward_completions", "reward_time"]
    assert all(f'<figure id="{name}">' in page for name in figures)


def test_a_sample_without_a_verdict_for_every_prompt_leaves_the_tables_whole(compared_copy):
    recipe, run_dir = compared_copy
    for part in run_dir.glob("comparison/**/evaluation/*.parquet"):
        rows = read_rows(part, EvaluationRecord)
        rows = [dataclasses.replace(r, reward=None, mode=None) if r.draw == 0 else r for r in rows]
        write_rows(part, rows, EvaluationRecord)
    say_compare(recipe, work=False)
    found = results(run_dir)
    assert found["methods"]["sft"]["over_seeds"]["heldout"]["undecided"]["value"] == 1 / 4
    assert 0 <= found["methods"]["sft"]["over_seeds"]["heldout"]["mean@4"]["value"] <= 1
    assert "Undecided" in (run_dir / "comparison" / "table.txt").read_text()
    with pytest.raises(DisaError, match="has enough samples with a verdict for pass@4. Fix: choose mean, raise"):
        say_compare(recipe, "comparison.search.criterion=pass", work=False)


@pytest.mark.slow
def test_two_processes_share_the_work_and_one_survives_the_other_s_kill(compared_copy):
    recipe, run_dir = compared_copy
    before = results(run_dir)
    for policy in policies(run_dir) - {"reference"}:
        shutil.rmtree(run_dir / "comparison" / policy)
    command = [sys.executable, "-c", "import sys; from disa.cli.main import main; sys.exit(main())"]
    first, second = (subprocess.Popen([*command, "compare", str(recipe)], stdout=subprocess.PIPE) for _ in range(2))
    while not list(run_dir.glob("comparison/*/*/*/training/steps.jsonl")):
        time.sleep(0.05)
    first.kill()
    printed, _ = second.communicate()
    first.communicate()
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 0)
    # The survivor did all but what the other had finished by then, and no policy twice.
    said = [line.split(":")[0] for line in printed.decode().splitlines() if ": done in" in line]
    assert len(said) == len(set(said)) > len(METHODS) * len(SEEDS)
    after = results(run_dir)
    for found in (before, after):
        found["recipe"] = None  # its run directory is another
        for method in found["methods"].values():
            method["seconds"] = None
    assert after == before
