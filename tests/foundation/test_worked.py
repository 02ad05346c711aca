"""A stage's seconds are those in which somebody worked on it."""

import os

import pytest

from disa.runs import peaks, worked
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt

ROW = Prompt("p0", "countdown", "train", "1 2 3=6:", "{}", 1)


@pytest.fixture
def at(monkeypatch):
    """Set the clock, and the number of the process that looks at it."""

    def set_to(seconds, process=1):
        monkeypatch.setattr(worked.time, "time", lambda: float(seconds))
        monkeypatch.setattr(os, "getpid", lambda: process)

    return set_to


def stage(tmp_path):
    return StageFolder(tmp_path, "2_proposals", version=1, identity={}, inputs={})


def test_the_time_between_two_sessions_does_not_count(tmp_path, at):
    at(100)
    stage(tmp_path).begin()
    at(110)
    stage(tmp_path).write_part("a", [ROW], Prompt)
    at(9000)  # killed in between
    folder = stage(tmp_path)
    folder.begin()
    at(9020)
    folder.write_part("b", [ROW], Prompt)
    at(9025)
    folder.finish()
    assert folder.manifest["seconds"] == 10 + 25


def test_processes_that_work_at_once_count_once(tmp_path):
    spans = {"a": (0, 60), "b": (10, 40), "c": (50, 80), "d": (100, 101)}
    lines = [(by, at, at == start) for by, (start, end) in spans.items() for at in (start, end)]
    text = "".join(f'\n{{"by": "{by}", "at": {at}, "begins": {str(begins).lower()}}}' for by, at, begins in lines)
    (tmp_path / worked.FILE).write_text(text)
    assert worked.seconds_worked(tmp_path) == 80 + 1


def test_a_note_cut_by_a_kill_spoils_no_other(tmp_path, at):
    at(0)
    worked.note_work(tmp_path, begins=True)
    at(5)
    worked.note_work(tmp_path)
    with (tmp_path / worked.FILE).open("a") as file:
        file.write('\n{"by": "host:1", "at": 7')
    at(50, process=2)
    worked.note_work(tmp_path, begins=True)
    at(53, process=2)
    worked.note_work(tmp_path)
    assert worked.seconds_worked(tmp_path) == 5 + 3


def test_the_notes_are_no_part_of_what_a_later_stage_depends_on(tmp_path, at):
    contents = []
    for seconds, folder in ((1, tmp_path / "a"), (1000, tmp_path / "b")):
        at(0)
        folder = stage(folder)
        folder.begin()
        at(seconds)
        folder.finish()
        contents.append(folder.content)
    assert contents[0] == contents[1]


def test_a_stages_peak_is_that_of_its_own_work_and_of_the_process_that_held_most(tmp_path, monkeypatch):
    before = bytearray(300 << 20)  # another stage's, let go again
    del before
    folder = stage(tmp_path)
    folder.begin()
    held = peaks.peaks()["peak_memory"]
    within = bytearray(150 << 20)
    folder.write_part("a", [ROW], Prompt)
    del within
    folder.finish()
    # A tenth of the array is far more than writing a row takes.
    assert folder.manifest["peak_memory"] == pytest.approx(held + (150 << 20), abs=15 << 20)
    assert "peak_cuda_memory" not in folder.manifest
    monkeypatch.setattr(worked, "peaks", lambda: {"peak_memory": 10**12, "peak_cuda_memory": 7})
    worked.note_work(folder.path)
    assert worked.most_held(folder.path) == {"peak_memory": 10**12, "peak_cuda_memory": 7}


def test_where_peaks_are_unknown_a_stage_finishes_without(tmp_path, monkeypatch):
    monkeypatch.setattr(peaks, "_PROC", tmp_path / "no_such")
    folder = stage(tmp_path)
    folder.begin()
    folder.finish()
    assert "peak_memory" not in folder.manifest
