"""Progress in a file: a line per minute, also within a part."""

import io

import pytest
from rich.console import Console

from disa.runs import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def bar_on(output, **kwargs):
    bar = progress.progress_bar()
    bar.live.console = Console(file=output, width=200, **kwargs)
    return bar


def test_a_file_gets_a_line_per_minute(clock):
    output = io.StringIO()
    with bar_on(output, force_terminal=False) as bar:
        task = bar.add_task("scoring: trajectories", total=400)
        for _ in range(100):
            clock[0] += 2.0
            bar.advance(task, 1)
        lines = [line for line in output.getvalue().splitlines() if " of 400 after " in line]
    assert [line.split(" after ")[0] for line in lines] == [
        f"scoring: trajectories: {made} of 400" for made in (30, 60, 90)
    ]


def test_a_terminal_gets_none(clock):
    output = io.StringIO()
    with bar_on(output, force_terminal=True) as bar:
        task = bar.add_task("scoring: trajectories", total=4)
        clock[0] += 100.0
        bar.update(task, completed=2)
        clock[0] += 100.0
        bar.advance(task, 1)
    assert " after " not in output.getvalue()
