"""Every command of README and docs that calls a benchmark: the file is there and takes the options. None is run."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINES = sorted(
    {
        " ".join(line.split())
        for path in PAGES
        for line in re.findall(
            r"\bpython (benchmarks/\w+\.py(?:(?!\s{2,}#)[^`\n])*)", path.read_text("utf-8").replace("\\\n", " ")
        )
    }
)
NEEDS = {"benchmarks/ray_calibration.py": "ray"}


class Parsed(Exception):
    """The options were taken."""


def parse(line, monkeypatch):
    """Start a benchmark with a line's options, and end it as soon as it has taken them."""
    file, *options = shlex.split(line)
    taken = argparse.ArgumentParser.parse_args

    def stop(parser, given=None, namespace=None):
        raise Parsed(taken(parser, given, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [file, *options])
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    runpy.run_path(str(ROOT / file), run_name="__main__")


@pytest.mark.parametrize("line", LINES)
def test_a_benchmark_takes_the_options_that_a_page_gives_it(line, monkeypatch):
    file, *options = shlex.split(line)
    pytest.importorskip(NEEDS.get(file, "json"))
    if "argparse" not in (ROOT / file).read_text("utf-8"):
        assert options == []
        return
    with pytest.raises(Parsed):
        parse(line, monkeypatch)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("benchmarks/structure.py --seeds 3", "unrecognized arguments: --seeds"),
        ("benchmarks/comparison.py RECIPE", "are required: --block"),
    ],
)
def test_options_that_do_not_exist_or_are_missing_are_noticed(line, said, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(line, monkeypatch)
    assert said in capsys.readouterr().err


def test_there_are_commands_of_many_benchmarks():
    assert len({line.split()[0] for line in LINES}) > 20
