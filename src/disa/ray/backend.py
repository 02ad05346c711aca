"""The driver: sends the parts that are missing to a Ray cluster and gives them back as they are made."""

from __future__ import annotations

import logging
import math
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from disa.errors import DisaError

if TYPE_CHECKING:
    from disa.recipe import Recipe

_log = logging.getLogger(__name__)

FORWARDED = ("HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE")
"""Environment variables that decide which files a model name stands for: processes on other nodes get them too."""
ATTEMPTS = 3
"""Attempts of which none made a part, after which it is not nodes that are lost."""
PATIENCE = 60.0
"""Seconds without a part after which a lost node is taken to be what the others wait for."""
_MODEL_CPU = 0.75
"""Of a core, where there are no GPUs; the rest of it is a verifier's."""


class RayBackend:
    """Makes parts on a cluster: verifiers in tasks on CPUs, what needs a model in actors that hold it.

    An actor has ``gpus`` GPUs of one node where the cluster has any, else most of a core. A part is a function of its
    prompts alone, so one that was lost with its node is made again, and is the same.

    Parameters
    ----------
    address : str, optional
        Of the cluster's head, ``HOST:PORT``; by default ``RAY_ADDRESS``, a cluster that runs on this machine, or a new
        one on its cores.
    gpus : int
        Over which a model is spread.

    Raises
    ------
    DisaError
        Where Ray is not installed or no cluster answers.
    """

    def __init__(self, address: str | None = None, gpus: int = 1) -> None:
        if find_spec("ray") is None:
            raise DisaError("Ray is not installed", where="--on ray", fix="pip install 'disa[ray]'")
        # Else a thread that asks for rows of a cluster that was left would join another one.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        import ray

        self._address, self._gpus, self._in_vain = address, gpus, 0
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            self._connect()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.verbose_stats_logs = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)

    def _connect(self) -> None:
        import ray

        environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        try:
            ray.init(address=self._address, runtime_env={"env_vars": environment}, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            problem = f"no Ray cluster answers ({str(error).splitlines()[0]})"
            fix = "start one with 'ray start --head', or correct the address"
            raise DisaError(problem, where=f"--on ray:{self._address}", fix=fix) from error

    def make(
        self, blocks: Mapping[str, Any], first: Callable[[Any], Any] | None, make: Callable[..., list[Any]]
    ) -> Iterator[tuple[str, list[Any]]]:
        """Rows of every block with its key, in the order in which they are made; it ends early where a node is lost.

        Parameters
        ----------
        first : callable, optional
            From a block to what ``make`` is given, without a model.
        make : callable
            From that, and a callable for progress, to rows.

        Raises
        ------
        DisaError
            With the node where it was raised, or where no node has as many GPUs as an actor needs.
        """
        import ray
        from ray import cloudpickle

        from disa.ray import workers

        parts, cpus = len(blocks), max(1, int(ray.cluster_resources().get("CPU", 1)))
        gpus = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
        places = sum(found // self._gpus for found in gpus) if any(gpus) else cpus
        if not places:  # Ray would wait for such a node for ever
            raise DisaError(
                f"an actor needs {self._gpus} GPUs, and the largest node has {max(gpus)}",
                where="--on ray",
                fix="lower proposals.vllm.tensor_parallel_size, or add larger nodes",
            )
        share = {"num_gpus": self._gpus} if any(gpus) else {"num_cpus": _MODEL_CPU}
        expected, one = workers.versions(), {"batch_size": 1, "batch_format": "numpy", "zero_copy_batch": True}
        items = [{"key": key, "block": pickle.dumps(block)} for key, block in blocks.items()]
        data = ray.data.from_items(items, override_num_blocks=parts)
        if first:
            given = {"function": cloudpickle.dumps(first), "expected": expected}
            data = data.map_batches(
                workers.judge_rows, fn_kwargs=given, num_cpus=1 if any(gpus) else 1 - _MODEL_CPU, **one
            )
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(places, parts), max_tasks_in_flight_per_actor=2)
        given = {"function": cloudpickle.dumps(make), "expected": expected}
        # An actor whose node is gone would wait for room elsewhere, and its parts with it.
        once = {"max_restarts": 0, "max_task_retries": 0}
        with warnings.catch_warnings():
            # Ray 2.64 takes these two away; pyproject.toml allows the releases before it.
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            data = data.map_batches(workers.Maker, fn_constructor_kwargs=given, compute=pool, **share, **once, **one)
        self._in_vain += 1
        try:
            for row in self._rows(data):
                made = pickle.loads(row["block"])
                if isinstance(made, DisaError):
                    raise made
                self._in_vain = 0
                yield row["key"], made
        except ray.exceptions.RayError as error:
            # A node was lost, with the parts that were on it: what is missing is asked for again.
            if self._in_vain == ATTEMPTS:
                problem = f"no part was made in {ATTEMPTS} attempts ({str(error).splitlines()[0]})"
                raise DisaError(problem, where="--on ray", fix="see Ray's logs on the nodes") from error

    def _rows(self, data: Any) -> Iterator[Any]:
        """Rows of a data set as they come; no more of them where a node was lost and none comes.

        Ray Data does not replace an actor that was lost while it had no part, and then waits for ever.
        """
        rows: SimpleQueue[Any] = SimpleQueue()
        left = threading.Event()

        def read() -> None:
            try:
                for row in data.iter_rows():
                    rows.put(row)
                    if left.is_set():
                        return
                rows.put(None)
            except BaseException as error:  # raised where the rows are asked for
                rows.put(error)

        nodes = _alive()
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            while True:
                try:
                    row = rows.get(timeout=PATIENCE)
                except Empty:
                    if nodes <= _alive():
                        continue
                    return self._begin_again(reader)
                if row is None:
                    return
                if isinstance(row, BaseException):
                    raise row
                yield row
        finally:
            left.set()

    def _begin_again(self, reader: threading.Thread) -> None:
        """Give up everything under way on the cluster, by leaving it."""
        import ray

        if not self._connected_here:
            problem = f"a node was lost, and no part came for {PATIENCE:.0f} s"
            raise DisaError(problem, where="Ray", fix="call it again in a new session of Ray: finished parts are kept")
        _log.warning("a node was lost, and no part came for %.0f s: what is missing is asked for again", PATIENCE)
        ray.shutdown()
        reader.join(PATIENCE)  # it fails now, and must not go on in the next session
        self._connect()


def _alive() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def backend_on(place: str | None, recipe: Recipe) -> RayBackend | None:
    """Make the backend that ``ray`` or ``ray:HOST:PORT`` names; None for this process.

    An actor gets the GPUs over which the recipe's vLLM spreads a model, and ``models.device_map`` has the same.

    Raises
    ------
    DisaError
        Where it names nothing, or a device map would have one GPU to spread a model over.
    """
    if place is None:
        return None
    name, _, address = place.partition(":")
    if name != "ray":
        raise DisaError(f"{place!r} is no place to run on", where="--on", fix="write ray or ray:HOST:PORT")
    sizes = ("tensor_parallel_size", "pipeline_parallel_size")
    gpus = math.prod(recipe.proposals.vllm.get(size, 1) for size in sizes)
    if recipe.models.device_map is not None and gpus == 1:
        raise DisaError(
            f"models.device_map is {recipe.models.device_map!r}, and an actor on Ray has one GPU",
            where="--on ray",
            fix="leave it out, or draw by vLLM with proposals.vllm.tensor_parallel_size: scoring has those GPUs too",
        )
    return RayBackend(address or None, gpus)
