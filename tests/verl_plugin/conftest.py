"""verl as an installed plugin's host finds it.

These tests need the real verl, which is no dependency: ``make test-verl`` puts it into a folder of its own. Without
it they are skipped.
"""

import contextlib
import importlib.metadata
import sys
import tomllib
import warnings
from pathlib import Path

from conversational import conversational_run  # noqa: F401

ROOT = Path(__file__).parents[2]


class PyprojectEntryPoints(importlib.metadata.DistributionFinder):
    """Entry points as pyproject.toml declares them now; an editable install keeps those of its day."""

    def find_distributions(self, context=None):
        if context is None or context.name is None:
            yield Declared()


class Declared(importlib.metadata.Distribution):
    """The project's distribution, of which only entry points are asked."""

    def read_text(self, filename):
        if filename == "METADATA":
            return "Metadata-Version: 2.1\nName: disa-declared\nVersion: 0\n"
        if filename != "entry_points.txt":
            return None
        groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        return "\n".join(f"[{g}]\n" + "\n".join(f"{k} = {v}" for k, v in e.items()) for g, e in groups.items())

    def locate_file(self, path):
        return ROOT / path


# verl warns on import of every engine and accelerator that is not there; warnings are errors in the tests.
with warnings.catch_warnings(), contextlib.suppress(ImportError):
    warnings.simplefilter("ignore")
    sys.meta_path.append(PyprojectEntryPoints())
    import verl  # noqa: F401
    import verl.trainer.main_ppo
    import verl.trainer.ppo.ray_trainer  # noqa: F401
    import verl.workers.engine.utils  # noqa: F401
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, PyprojectEntryPoints)]
