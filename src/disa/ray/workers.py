"""What runs on the nodes: functions of the stages, with every error as a value that says where it happened."""

from __future__ import annotations

import functools
import importlib.metadata
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle

import disa
from disa.errors import DisaError
from disa.runs.files import file_digest
from disa.runs.provenance import digest

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
"""What numbers and ids depend on beside this package."""

Batch = dict[str, Any]
"""Ray Data's: parts by their columns ``key`` and ``block``, the latter pickled."""


def versions() -> dict[str, str]:
    """Versions of this process's packages, and a digest of this package's code."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    root = Path(disa.__file__).parent
    return found | {"disa": digest({str(p.relative_to(root)): file_digest(p) for p in sorted(root.rglob("*.py"))})}


def judge_rows(batch: Batch, *, function: bytes, expected: dict[str, str]) -> Batch:
    """What needs no model: verifiers."""
    return _each(batch, expected, lambda block: _loaded(function)(block))


class Maker:
    """An actor that holds what the function loads with its first block: models, or vLLM.

    Parameters
    ----------
    function : bytes
        A pickled function from a block, and a callable for progress, to rows.
    expected : dict
        :func:`versions` of the process that started the run.
    """

    def __init__(self, function: bytes, expected: dict[str, str]) -> None:
        self._function, self._expected = function, expected
        self._make: Callable[..., list[Any]] | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Rows of the batch's blocks."""

        def make(block: Any) -> list[Any]:
            self._make = self._make or cloudpickle.loads(self._function)
            return self._make(block, lambda rows: None)

        return _each(batch, self._expected, make)


@functools.lru_cache(maxsize=1)
def _loaded(function: bytes) -> Callable[[Any], Any]:
    return cloudpickle.loads(function)


def _each(batch: Batch, expected: dict[str, str], function: Callable[[Any], Any]) -> Batch:
    """Apply a function to every block; one that is an error already stays so."""
    blocks = [_one(pickle.loads(block), expected, function) for block in batch["block"]]
    return {"key": batch["key"], "block": [pickle.dumps(block) for block in blocks]}


def _one(block: Any, expected: dict[str, str], function: Callable[[Any], Any]) -> Any:
    if isinstance(block, DisaError):
        return block
    try:
        found = _versions()
        for name, version in expected.items():
            if found[name] != version:
                problem = f"{name} is {found[name]}, and {version} where the run was started"
                raise DisaError(problem, fix="install the same versions on every node")
        return function(block)
    except DisaError as error:
        where = f"node {_node()}" + (f", {error.where}" if error.where else "")
        return DisaError(error.problem, where=where, fix=error.fix)
    except Exception as error:  # whatever a library raises: as a value it keeps its node, and is not tried again
        fix = "install what the recipe needs on every node, and see docs/scaling.md"
        return DisaError(f"{type(error).__name__}: {error}", where=f"node {_node()}", fix=fix)


_versions = functools.cache(versions)


def _node() -> str:
    import ray

    return ray.util.get_node_ip_address()
