"""Any number of processes run one recipe together: each part is made once, and the anchor is that of one process."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from killed_run import start
from test_killed_runs import contents, tables

from disa.anchor import Anchor
from disa.errors import DisaError
from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs import processes
from disa.runs.folders import StageFolder
from disa.runs.locks import shared
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, ScoredTrajectory, Trajectory
from disa.runs.sharing import by_launch
from disa.runs.step_log import read_step_log
from launched import launch

CALIBRATION = ("2_proposals", "3_scoring", "4_partition", "5_anchor")


@pytest.fixture(scope="session")
def started_run(finished_run, tmp_path_factory):
    """The tiny run's models with nothing drawn yet."""
    folder = tmp_path_factory.mktemp("started")
    for name in ("1_tasks", "warmup"):
        shutil.copytree(finished_run / name, folder / name, copy_function=shutil.copy2)
    return folder


def many_parts(values):
    """The tiny recipe with more parts than processes."""
    values["proposals"]["prompts_per_part"] = 1
    values["scoring"] = {"trajectories_per_part": 10}
    return values


@pytest.fixture
def recipe(started_run, tiny_recipe, write_recipe, tmp_path):
    """A recipe of many parts, in a run directory of its own."""

    def make(name):
        shutil.copytree(started_run, tmp_path / name, copy_function=shutil.copy2)
        values = many_parts(tiny_recipe) | {"run_dir": str(tmp_path / name)}
        return write_recipe(values, f"{name}.yaml"), tmp_path / name

    return make


@pytest.fixture(scope="session")
def by_one(finished_run, started_run, tmp_path_factory):
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("by-one")
    shutil.copytree(started_run, folder / "run", copy_function=shutil.copy2)
    values = many_parts(yaml.safe_load((finished_run.parent / "recipe.yaml").read_text()))
    values["run_dir"] = str(folder / "run")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert work_together(folder / "recipe.yaml", 1) == [0]
    return folder / "run"


def work_together(recipe, count, points=()):
    """Exit codes of ``count`` processes that run the same recipe up to the anchor, some of which die at a point."""
    points = [*points, *[None] * (count - len(points))]
    workers = [start(recipe, point, "--until", "anchor") for point in points]
    for worker in workers:
        worker.join()
    return [worker.exitcode for worker in workers]


def assert_made_together(run_dir, by_one):
    """As one process makes it, to the byte."""
    assert contents(run_dir) == contents(by_one)
    assert tables(run_dir) == tables(by_one)
    drawn, scored = read_rows(run_dir / "2_proposals", Trajectory), read_rows(run_dir / "3_scoring", ScoredTrajectory)
    keys = [(t.prompt_id, t.source, t.draw) for t in drawn]
    assert len(set(keys)) == len(keys) == 6 * 16 + 3 * 8
    assert [(t.prompt_id, t.source, t.draw) for t in scored] == keys
    Anchor.load(run_dir / "5_anchor")
    # No claim is left, and nothing was moved aside.
    assert list(run_dir.rglob("*.claim.tmp")) == []
    assert not (run_dir / "superseded").exists()


@pytest.mark.parametrize("count", [2, 5])
def test_the_anchor_of_many_workers_is_that_of_one(count, recipe, by_one):
    path, run_dir = recipe("together")
    assert work_together(path, count) == [0] * count
    assert contents(run_dir).keys() >= set(CALIBRATION)
    assert_made_together(run_dir, by_one)


def test_others_take_over_the_parts_of_a_worker_that_was_killed(recipe, by_one):
    path, run_dir = recipe("disturbed")
    # One dies with a part drawn but not written, before others begin: alone, it is sure to come to that part.
    assert work_together(path, 1, [("before", "2_proposals/part-000000-reference.parquet")]) == [-signal.SIGKILL]
    # Of two more, one dies if it is the one to score the first part.
    codes = work_together(path, 2, [("before", "3_scoring/part-00000000.parquet")])
    assert codes[0] in (0, -signal.SIGKILL) and codes[1] == 0
    assert_made_together(run_dir, by_one)


def run_command(arguments):
    from disa.cli.main import main

    return main(arguments)


def run_aloud(recipe, log):
    """Run up to the anchor; what the process says goes to a file of its own."""
    with open(f"{log}.{processes.rank()}", "w") as file, contextlib.redirect_stdout(file):
        return run_command(["run", str(recipe), "--until", "anchor"])


def test_processes_of_a_launch_share_the_parts_and_one_speaks(recipe, tmp_path, by_one):
    path, run_dir = recipe("launched")
    assert launch(run_aloud, path, tmp_path / "said", count=2) == [0, 0]
    assert_made_together(run_dir, by_one)
    # It says of every stage that it is done, or finished earlier where the other process was faster.
    assert re.search("^5_anchor: (done in|finished earlier)", (tmp_path / "said.0").read_text(), re.MULTILINE)
    assert (tmp_path / "said.1").read_text() == ""


def open_stage(folder):
    stage = StageFolder(folder, "2_proposals", version=1, identity={}, inputs={})
    stage.begin()
    return stage


def write(stage, key, count=1):
    stage.write_part(key, [Prompt(str(i), "task", "train", str(i), "{}", None) for i in range(count)], Prompt)


def test_each_part_is_handed_to_one_worker_and_a_dead_one_s_part_to_another(tmp_path):
    sizes = {f"part-{i}": 1 for i in range(3)}
    first, second = open_stage(tmp_path), open_stage(tmp_path)
    hers, his = first.parts_to_make(sizes), second.parts_to_make(sizes)
    assert next(hers) == "part-0"
    assert next(his) == "part-1"
    write(second, "part-1")
    assert next(his) == "part-2"
    write(second, "part-2")
    hers.close()  # she dies with part-0 unwritten: her claim goes with her
    assert next(his) == "part-0"
    write(second, "part-0")
    assert list(his) == []
    assert list(first.parts_to_make(sizes)) == []
    assert list(first.path.glob("*.tmp")) + list(first.path.glob(".*.tmp")) == []


def test_parts_of_another_size_are_made_again_and_those_that_fit_stay(tmp_path):
    stage = open_stage(tmp_path)
    write(stage, "part-0", 2)
    write(stage, "part-1", 1)
    write(stage, "part-9", 1)
    made = []
    for key in stage.parts_to_make({"part-0": 1, "part-1": 1}):
        made.append(key)
        write(stage, key)
    assert made == ["part-0"]
    assert sorted(p.stem for p in stage.path.glob("*.parquet")) == ["part-0", "part-1"]


def test_other_settings_are_kept_out_while_a_recipe_is_at_work(recipe, tiny_recipe, write_recipe, capfd):
    path, run_dir = recipe("busy")
    pipeline = Pipeline(load_recipe(path), say=print)
    with shared(run_dir, pipeline.work):
        other = write_recipe(tiny_recipe | {"run_dir": str(run_dir), "partition": {"level": 0.8}}, "other.yaml")
        assert run_command(["run", str(other), "--until", "tasks"]) == 2
        assert "another disa process is working in this run directory with other settings" in capfd.readouterr().err
        assert run_command(["run", str(path), "--until", "tasks"]) == 0


MEETING = 5.0
"""Seconds within which the processes of the launch below must meet: enough for a look at a busy machine."""


def train_after_a_worker(run_dir):
    """A stage of a launch that somebody else may hold; the processes say that they wait, and that they worked."""
    import datetime

    from accelerate import PartialState

    PartialState(cpu=True, timeout=datetime.timedelta(seconds=MEETING))
    stage = StageFolder(run_dir, "warmup", version=1, identity={}, inputs={})

    def work(stage):
        (stage.path / f"worked.{processes.rank()}").touch()
        processes.wait_for_all()
        if processes.rank() == 0:
            stage.finish()

    by_launch(stage, work, lambda: (run_dir / f"waits.{processes.rank()}").open("x").close())


@pytest.mark.parametrize("finishes", [False, True], ids=["a worker that leaves", "a worker that finishes the stage"])
def test_processes_of_a_launch_wait_for_a_worker_longer_than_for_each_other(finishes, tmp_path):
    stage = StageFolder(tmp_path, "warmup", version=1, identity={}, inputs={})

    def hold():
        with stage.alone():
            holds.set()
            while not (tmp_path / "waits.0").exists():
                time.sleep(0.05)
            if finishes:
                stage.begin()
                stage.finish()
            else:
                time.sleep(1.5 * MEETING)

    holds = threading.Event()
    worker = threading.Thread(target=hold, daemon=True)
    worker.start()
    holds.wait()
    assert launch(train_after_a_worker, tmp_path, count=2) == [0, 0]
    worker.join()
    assert stage.finished
    worked = sorted(path.name for path in stage.path.glob("worked.*"))
    assert worked == ([] if finishes else ["worked.0", "worked.1"])


def look(run_dir):
    """What each process of a launch takes a stage for that is finished while they look."""
    stage = StageFolder(run_dir, "warmup", version=1, identity={}, inputs={})
    if processes.rank() == 1:
        while not (run_dir / "seen").exists():
            time.sleep(0.05)
        stage.begin()
        stage.finish()
    finished = stage.finished
    if processes.rank() == 0:
        (run_dir / "seen").touch()
    (run_dir / f"taken.{processes.rank()}").write_text(f"{finished} {processes.first_says(finished)}")


def test_processes_of_a_launch_agree_on_whether_a_stage_is_finished(tmp_path):
    assert launch(look, tmp_path, count=2) == [0, 0]
    assert [(tmp_path / f"taken.{rank}").read_text() for rank in (0, 1)] == ["False False", "True False"]


def test_a_batch_that_the_processes_of_a_launch_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(DisaError, match="training.prompts_per_step is 3, which 5 processes cannot share.*Fix: "):
        processes.share_of_process(3, "training.prompts_per_step")
    assert processes.share_of_process(10, "any") == 2


def test_the_first_of_several_workers_finishes_a_stage(tmp_path):
    first, second = open_stage(tmp_path), open_stage(tmp_path)
    write(first, "part-0")
    first.finish(by="first")
    content = first.content
    second.finish(by="second")
    assert second.manifest["by"] == "first"
    assert second.content == content


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_whole_run_under_torchrun(tiny_recipe, write_recipe, tmp_path, finished_run):
    """From warm-up to report by two CPU processes on gloo."""
    tiny_recipe["training"] |= {"prompts_per_step": 2, "methods": ["disa", "flowrl", "sft"]}
    recipe = write_recipe(tiny_recipe | {"run_dir": str(tmp_path / "run")})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "disa", "run", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("8_report: done in") == 1
    # The warm-up's sums over a batch are added up in another order: the same curve, up to rounding.
    for name in ("proposal", "reference"):
        alone, together = (read_step_log(d / f"warmup/{name}.jsonl") for d in (finished_run, tmp_path / "run"))
        assert [line["step"] for line in together] == [line["step"] for line in alone]
        assert together[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-4)
    for method in ("disa", "flowrl", "sft"):
        manifest = json.loads((tmp_path / "run" / "6_training" / method / "manifest.json").read_text())
        assert manifest["processes"] == 2
        steps = [line["step"] for line in read_step_log(tmp_path / "run" / "6_training" / method / "steps.jsonl")]
        assert steps == [1, 2, 3, 4]
    assert list((tmp_path / "run" / "superseded").rglob("*")) == []
