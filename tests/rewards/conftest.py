"""Files of cases that were once judged wrong."""

import json
import os
from pathlib import Path

import pytest

CASES = Path(os.environ.get("DISA_CASES", Path(__file__).parents[2].parent / "shared" / "cases"))


def case_rows(name):
    """Rows of a file of cases; skipped where it is not at hand."""
    path = CASES / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set DISA_CASES to the folder that holds {name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
