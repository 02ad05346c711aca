"""A calibration that is killed at any moments and started again ends as one that never was, with tools and without."""

import collections
import json
import multiprocessing
import random
import shutil
import time

import killed_calls
import pytest
import tool_toy as toy

from disa.runs.parquet_rows import read_rows
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory

PROMPTS = 130  # three parts


@pytest.fixture(scope="module", params=["plain", "with_tool"])
def start(request, finished_run, tmp_path_factory):
    """A function of a folder that starts the call in a process of its own, forked with all imports done."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "plain":
        prompts = [p for path in (finished_run / "1_tasks").glob("*.parquet") for p in read_rows(path, Prompt)]
        models, given = finished_run / "warmup", [{"prompt": p.prompt} for p in prompts]
    else:
        models, given = folder / "reference", toy.rows()
        toy.save(models)
    rows = folder / "rows.json"
    rows.write_text(json.dumps([given[i % len(given)] | {"n": i} for i in range(PROMPTS)]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_calls", "trl.trainer.grpo_trainer", "disa.calibration.trainers_draws"])

    def started(target, *args):
        process = context.Process(target=target, args=args)
        process.start()
        return process

    assert call(lambda _: started(killed_calls.nothing), None) == 0  # the server itself
    work = getattr(killed_calls, request.param)
    return lambda into: started(work, str(models), str(rows), str(into))


def call(start, folder, limit=None):
    """Exit code of the call; None where it was killed at the limit, in seconds."""
    process = start(folder)
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def results(folder):
    scored = [r for path in sorted((folder / "3_scoring").glob("*.parquet")) for r in read_rows(path, ScoredTrajectory)]
    return scored, read_rows(folder / "5_anchor" / "anchor.parquet", PartitionEstimate)


def under_way(folder):
    """The first stage that was begun and not finished."""
    stages = sorted(path.parent for path in folder.glob("*/started.json"))
    return next((stage.name for stage in stages if not (stage / "manifest.json").is_file()), "between stages")


def killed_and_continued(start, tmp_path, kills, seed):
    began = time.monotonic()
    assert call(start, tmp_path / "whole") == 0
    whole = time.monotonic() - began
    expected, folder = results(tmp_path / "whole"), tmp_path / "killed"
    assert len({(r.prompt_id, r.source, r.draw) for r in expected[0]}) == len(expected[0]) == PROMPTS * 4
    moments, stages = random.Random(seed), collections.Counter()
    while stages.total() < kills:
        code = call(start, folder, moments.uniform(0.1, 0.9) * whole)
        if code is None:
            stages[under_way(folder)] += 1
        else:  # it came to its end between two kills: compared, and begun anew
            assert code == 0
            assert results(folder) == expected
            shutil.rmtree(folder)
    assert call(start, folder) == 0
    assert results(folder) == expected
    print(f"{kills} kills of a call of {whole:.1f} s:", dict(sorted(stages.items())))


def test_three_kills_lose_and_double_nothing(start, tmp_path):
    killed_and_continued(start, tmp_path, kills=3, seed=0)


def test_processes_that_make_the_same_call_share_its_work(start, tmp_path):
    assert call(start, tmp_path / "alone") == 0
    together = [start(tmp_path / "shared") for _ in range(2)]
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0, 0]
    assert results(tmp_path / "shared") == results(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_kills_lose_and_double_nothing(start, tmp_path):
    killed_and_continued(start, tmp_path, kills=30, seed=1)
