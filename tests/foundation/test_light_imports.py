"""What starts in milliseconds must not wait for torch."""

import json
import subprocess
import sys

import pytest

import disa
from disa.stages import STAGES

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "matplotlib", "scipy", "verl")
_HELP = (
    "from disa.cli.main import main\n"
    "try:\n    main({arguments!r})\n"
    "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
)


def heavy_modules_after(code):
    """Which heavy packages a fresh interpreter has loaded after running some code."""
    program = f"{code}\nimport sys, json\nprint()\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def test_the_check_itself_sees_a_heavy_import():
    assert heavy_modules_after("import disa; disa.DISAConfig")[1] != []


def test_importing_disa_loads_nothing_heavy():
    assert heavy_modules_after("import disa; dir(disa)")[1] == []


def test_help_of_every_command_loads_nothing_heavy():
    # One interpreter for all of them: what one command loads, the list shows.
    others = ("compare", "study", "inspect", "evaluate", "judge", "plan", "verl", "check", "init", "schema", "watch")
    names = ("run", *others, *STAGES)
    commands = [["--help"], *([name, "--help"] for name in names)]
    output, loaded = heavy_modules_after("".join(_HELP.format(arguments=command) for command in commands))
    assert loaded == []
    assert output.count("usage: disa") == len(commands)
    assert all(f"usage: disa {name}" in output for name in names)


def test_every_public_name_loads():
    assert all(getattr(disa, name) is not None for name in disa.__all__)
    assert dir(disa) == disa.__all__


def test_an_unknown_attribute_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'disa' has no attribute 'estimate_partition'"):
        _ = disa.estimate_partition
