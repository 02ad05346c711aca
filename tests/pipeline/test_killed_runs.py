"""kill -9 at any moment, then the same command again: the result is that of an undisturbed run."""

import collections
import json
import random
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest
from killed_run import run_to_its_end, start

from disa.anchor import Anchor
from disa.runs.step_log import read_step_log

# Each run dies at its point, and the next one goes on from there: before a file appears, after it, and between steps.
POINTS = [
    ("before", "1_tasks/started.json"),
    ("after", "1_tasks/train.parquet"),
    ("step", "warmup/proposal.jsonl:50"),
    ("before", "warmup/proposal"),
    ("after", "2_proposals/part-000002-reference.parquet"),
    ("after", "3_scoring/parity.json"),
    ("after", "4_partition/estimates.parquet"),
    ("before", "5_anchor/manifest.json"),
    ("step", "6_training/disa/steps.jsonl:3"),
    ("step", "6_training/grpo/steps.jsonl:3"),
    ("after", "6_training/grpo/model"),
    ("before", "7_evaluation/disa/part-000000.parquet"),
    ("before", "8_report/manifest.json"),
]
TIMES = ("wall_time", "step_time")


def tables(run_dir):
    """Every Parquet file outside superseded/, whole: equal tables have the same rows in the same order."""
    files = [p for p in run_dir.rglob("*.parquet") if "superseded" not in p.parts and not p.name.startswith(".")]
    return {str(p.relative_to(run_dir)): pq.read_table(p) for p in files}


def contents(run_dir):
    """What each stage's manifest says its files are."""
    manifests = [p for p in run_dir.rglob("manifest.json") if "superseded" not in p.parts]
    return {str(p.parent.relative_to(run_dir)): json.loads(p.read_text())["content"] for p in manifests}


def steps(run_dir):
    """Step logs of training without their times."""
    return {
        str(p.relative_to(run_dir)): [{k: v for k, v in line.items() if k not in TIMES} for line in read_step_log(p)]
        for p in sorted((run_dir / "6_training").rglob("*.jsonl"))
    }


def assert_same_run(run_dir, undisturbed):
    found, expected = tables(run_dir), tables(undisturbed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not found[name].equals(expected[name])] == []
    digests = [json.loads((d / "5_anchor" / "manifest.json").read_text())["anchor"] for d in (run_dir, undisturbed)]
    assert digests[0] == digests[1]
    Anchor.load(run_dir / "5_anchor")
    # The report's page carries the name of its run directory; everything before it is equal to the byte.
    found, expected = ({k: v for k, v in contents(d).items() if k != "8_report"} for d in (run_dir, undisturbed))
    assert found == expected
    assert steps(run_dir) == steps(undisturbed)
    for name in ("summary.txt", "summary.json"):
        assert (run_dir / "8_report" / name).read_bytes() == (undisturbed / "8_report" / name).read_bytes()
    # Only what a kill left half-written may have been moved aside.
    assert [p for p in (run_dir / "superseded").rglob("*") if p.is_file() and p.suffix != ".tmp"] == []


@pytest.fixture
def recipe(tiny_recipe, write_recipe, tmp_path):
    return write_recipe(tiny_recipe | {"run_dir": str(tmp_path / "run")})


def test_a_run_killed_in_every_stage_ends_as_if_nothing_had_happened(recipe, tmp_path, finished_run):
    for point in POINTS:
        assert run_to_its_end(recipe, point) == -signal.SIGKILL, f"not reached: {point}"
    assert run_to_its_end(recipe) == 0
    assert_same_run(tmp_path / "run", finished_run)


def test_the_points_lie_in_every_stage(finished_run):
    killed = {name.split("/")[0] for _, name in POINTS}
    assert killed == {p.name for p in finished_run.iterdir() if p.is_dir()}


def test_a_checkpoint_cut_short_by_a_kill_is_passed_over(run_copy, finished_run):
    recipe, run_dir = run_copy
    training = run_dir / "6_training" / "disa"
    (training / "manifest.json").unlink()
    state = training / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:100])
    assert run_to_its_end(recipe) == 0
    assert_same_run(run_dir, finished_run)


def test_a_step_log_cut_short_by_a_kill_is_mended(run_copy, finished_run):
    recipe, run_dir = run_copy
    training = run_dir / "6_training" / "grpo"
    (training / "manifest.json").unlink()
    shutil.rmtree(training / "checkpoints")
    log = training / "steps.jsonl"
    log.write_text(log.read_text()[:-30])
    assert run_to_its_end(recipe) == 0
    assert_same_run(run_dir, finished_run)


def under_way(run_dir, stages):
    """What a kill just now interrupted: the first stage, in the order of work, that has been begun and not finished."""
    begun = [s for s in stages if (run_dir / s / "started.json").is_file()]
    return next((s.split("/")[0] for s in begun if not (run_dir / s / "manifest.json").is_file()), "between stages")


def seconds_of_stages(run_dir):
    """How long each stage took here, in the order in which they ran."""
    manifests = [json.loads(p.read_text()) for p in run_dir.rglob("manifest.json")]
    started = {m["stage"]: json.loads((run_dir / m["stage"] / "started.json").read_text()) for m in manifests}
    manifests.sort(key=lambda m: started[m["stage"]]["started_at"])
    return {m["stage"]: m["seconds"] for m in manifests}


def kill_at_random(recipe, run_dir, undisturbed, *, kills, workers):
    """Keep some processes at work on a recipe and kill one after the other, equally often in each stage.

    A kill comes at a random moment of the time that its stage takes, measured on the same machine under about the same
    load. A stage that is finished before all its kills have come is deleted, and made again. Whenever a run reaches
    its end all the same, it is compared.

    Returns
    -------
    Counter
        Kills by the stage that was under way.
    """
    rng, hit, compared = random.Random(workers), collections.Counter(), 0
    seconds = seconds_of_stages(undisturbed)
    arrival = dict.fromkeys(seconds, 0.0)
    at_work = []
    for stage in [stage for stage in seconds for _ in range(-(-kills // len(seconds)))]:
        if (run_dir / stage / "manifest.json").is_file():
            stop(at_work)
            shutil.rmtree(run_dir / stage)
        at_work += [start(recipe) for _ in range(workers - len(at_work))]
        victim = at_work.pop(rng.randrange(workers))
        began, marker = time.monotonic(), run_dir / stage / "started.json"
        if marker.is_file():
            # The stage goes on from an earlier kill: the process has to come there first.
            time.sleep(arrival[stage])
        while victim.is_alive() and not marker.is_file():
            time.sleep(0.001)
            arrival[stage] = time.monotonic() - began
        victim.join(timeout=rng.uniform(0.0, seconds[stage]))
        victim.kill()
        victim.join()
        if victim.exitcode == -signal.SIGKILL:
            hit[under_way(run_dir, seconds)] += 1
        else:
            assert victim.exitcode == 0
            assert_same_run(run_dir, undisturbed)
            compared += 1
    stop(at_work)
    assert run_to_its_end(recipe) == 0
    assert_same_run(run_dir, undisturbed)
    print(f"\n{hit.total()} kills, {workers} at work, compared {compared + 1} times: {dict(hit.most_common())}")
    return hit


def stop(at_work):
    while at_work:
        process = at_work.pop()
        process.kill()
        process.join()


# The others take milliseconds; the kills at fixed points lie in them.
STAGES_OF_SOME_LENGTH = {"warmup", "2_proposals", "3_scoring", "6_training", "7_evaluation"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_kills_at_random_moments_leave_no_trace(recipe, tmp_path, finished_run):
    hit = kill_at_random(recipe, tmp_path / "run", finished_run, kills=120, workers=1)
    assert hit.total() >= 100
    assert hit.keys() >= STAGES_OF_SOME_LENGTH


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_kills_among_workers_that_share_a_run_leave_no_trace(tiny_recipe, write_recipe, tmp_path):
    tiny_recipe["proposals"]["prompts_per_part"] = 1
    tiny_recipe["scoring"] = {"trajectories_per_part": 10}
    tiny_recipe["evaluation"]["prompts_per_part"] = 1
    alone = write_recipe(tiny_recipe | {"run_dir": str(tmp_path / "alone")}, "alone.yaml")
    assert run_to_its_end(alone) == 0
    recipe = write_recipe(tiny_recipe | {"run_dir": str(tmp_path / "run")})
    hit = kill_at_random(recipe, tmp_path / "run", tmp_path / "alone", kills=60, workers=3)
    assert hit.keys() >= STAGES_OF_SOME_LENGTH
