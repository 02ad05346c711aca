"""A calibration that is killed at any moment and started again ends as one that never was."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disa.runs.parquet_rows import read_rows
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory

SCRIPT = Path(__file__).with_name("calibration_script.py")


def start(finished_run, rows, folder):
    command = [sys.executable, str(SCRIPT), str(finished_run / "warmup"), str(rows), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def results(folder):
    scored = [r for path in sorted((folder / "3_scoring").glob("*.parquet")) for r in read_rows(path, ScoredTrajectory)]
    return scored, read_rows(folder / "5_anchor" / "anchor.parquet", PartitionEstimate)


def killed_and_continued(tmp_path, finished_run, kills, seed):
    rows = tmp_path / "rows.json"
    prompts = [p for path in (finished_run / "1_tasks").glob("*.parquet") for p in read_rows(path, Prompt)][:9]
    rows.write_text(json.dumps([{"prompt": prompt.prompt} for prompt in prompts]))
    began = time.monotonic()
    assert start(finished_run, rows, tmp_path / "whole").wait(timeout=250) == 0
    whole = time.monotonic() - began
    moments, interrupted = random.Random(seed), 0
    for _ in range(kills):
        process = start(finished_run, rows, tmp_path / "killed")
        try:
            # After the imports, where there is something to lose, up to the end.
            process.wait(timeout=moments.uniform(0.3, 0.9) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            interrupted += 1
    assert start(finished_run, rows, tmp_path / "killed").wait(timeout=250) == 0
    assert interrupted >= (kills + 1) // 2
    scored, estimates = results(tmp_path / "killed")
    assert (scored, estimates) == results(tmp_path / "whole")
    assert len({(r.prompt_id, r.source, r.draw) for r in scored}) == len(scored) == 9 * 12


def test_a_kill_loses_and_doubles_nothing(tmp_path, finished_run):
    killed_and_continued(tmp_path, finished_run, kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_lose_and_double_nothing(tmp_path, finished_run):
    killed_and_continued(tmp_path, finished_run, kills=30, seed=1)
