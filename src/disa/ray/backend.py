"""The driver: sends the parts that are missing to a Ray cluster and gives them back as they are made."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from disa.errors import DisaError

FORWARDED = ("HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE")
"""Environment variables that decide which files a model name stands for: processes on other nodes get them too."""
_MODEL_CPU = 0.75
"""Of a core, where there are no GPUs; the rest of it is a verifier's."""


class RayBackend:
    """Makes parts on a cluster: verifiers in tasks on CPUs, what needs a model in actors that hold it.

    An actor has a GPU where the cluster has any, else most of a core. A part is a function of its prompts alone, so
    one that was lost with its node is made again, and is the same.

    Parameters
    ----------
    address : str, optional
        Of the cluster's head, ``HOST:PORT``; by default ``RAY_ADDRESS``, a cluster that runs on this machine, or a new
        one on its cores.

    Raises
    ------
    DisaError
        Where Ray is not installed or no cluster answers.
    """

    def __init__(self, address: str | None = None) -> None:
        if find_spec("ray") is None:
            raise DisaError("Ray is not installed", where="--on ray", fix="pip install 'disa[ray]'")
        import ray

        environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        if not ray.is_initialized():
            try:
                ray.init(address=address, runtime_env={"env_vars": environment}, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                problem = f"no Ray cluster answers ({str(error).splitlines()[0]})"
                fix = "start one with 'ray start --head', or correct the address"
                raise DisaError(problem, where=f"--on ray:{address}", fix=fix) from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.verbose_stats_logs = False

    def make(
        self, blocks: Mapping[str, Any], first: Callable[[Any], Any] | None, make: Callable[..., list[Any]]
    ) -> Iterator[tuple[str, list[Any]]]:
        """Rows of every block with its key, in the order in which they are made.

        Parameters
        ----------
        first : callable, optional
            From a block to what ``make`` is given, without a model.
        make : callable
            From that, and a callable for progress, to rows.

        Raises
        ------
        DisaError
            With the node where it was raised.
        """
        import ray
        from disa.ray import workers
        from ray import cloudpickle

        total, parts = ray.cluster_resources(), len(blocks)
        gpus, cpus = int(total.get("GPU", 0)), max(1, int(total.get("CPU", 1)))
        share = {"num_gpus": 1} if gpus else {"num_cpus": _MODEL_CPU}
        expected, one = workers.versions(), {"batch_size": 1, "batch_format": "numpy", "zero_copy_batch": True}
        items = [{"key": key, "block": pickle.dumps(block)} for key, block in blocks.items()]
        data = ray.data.from_items(items, override_num_blocks=parts)
        if first:
            given = {"function": cloudpickle.dumps(first), "expected": expected}
            data = data.map_batches(workers.judge, fn_kwargs=given, num_cpus=1 if gpus else 1 - _MODEL_CPU, **one)
        pool = ray.data.ActorPoolStrategy(
            min_size=1, max_size=min(gpus or cpus, parts), max_tasks_in_flight_per_actor=2
        )
        given = {"function": cloudpickle.dumps(make), "expected": expected}
        data = data.map_batches(workers.Maker, fn_constructor_kwargs=given, compute=pool, **share, **one)
        for row in data.iter_rows():
            made = pickle.loads(row["block"])
            if isinstance(made, DisaError):
                raise made
            yield row["key"], made


def backend_on(place: str) -> RayBackend:
    """Make the backend that ``ray`` or ``ray:HOST:PORT`` names.

    Raises
    ------
    DisaError
        Where it names nothing.
    """
    name, _, address = place.partition(":")
    if name != "ray":
        raise DisaError(f"{place!r} is no place to run on", where="--on", fix="write ray or ray:HOST:PORT")
    return RayBackend(address or None)
