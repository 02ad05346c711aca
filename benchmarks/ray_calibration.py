"""Time calibration by one process, by two locked workers and on two Ray nodes, each of one core, in turns.

Fills the marked block of docs/scaling.md; wants a quiet machine of two cores, and Ray (``make test-ray`` installs it)::

    PYTHONPATH=.verl python benchmarks/ray_calibration.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from page import fill, table
from paired import Seconds, in_turns, ratio

PAGE = Path("docs/scaling.md")


def main() -> None:
    """Warm up once, then time drawing and scoring in each of the three ways."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--recipe", default="recipes/quickstart.yaml")
    options.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="override in the recipe")
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args()
    recipe = [given.recipe, *(word for setting in given.set for word in ("--set", setting))]
    folder = Path(tempfile.mkdtemp())
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RAY_worker_niceness"] = "0"  # as the other ways' processes; by default Ray's give way to anything
    disa(recipe, folder / "warm", "--until", "warmup")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    ways = {
        "one process": lambda run: disa(recipe, run, "--until", "scoring", core="0"),
        "two workers": lambda run: workers(recipe, run),
        "two Ray nodes": lambda run: disa(recipe, run, "--until", "scoring", "--on", f"ray:{cluster.address}"),
    }
    try:
        found = in_turns({name: timed(folder, way) for name, way in ways.items()}, given.repeats)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder)
    rows = [[name, *(f"{s.wall:.0f}" for s in seconds)] for name, seconds in found.items()]
    lines = [f"Settings: `{' '.join(recipe)}`.\n"]
    lines += table(["seconds", *(f"turn {i + 1}" for i in range(given.repeats))], rows)
    for slower in ("one process", "two workers"):
        lines.append(f"\n{slower} over two Ray nodes: {ratio(found[slower], found['two Ray nodes'])[0]}.")
    fill("ray_calibration", "\n".join(lines), PAGE)


def timed(folder: Path, way):
    """Seconds from the warmed-up run to the end of scoring, start-up of processes included."""

    def work() -> Seconds:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "warm", run)
        start = time.perf_counter()
        way(run)
        return Seconds(time.perf_counter() - start, 1.0)  # the processor's seconds are other processes'

    return work


def command(recipe: list[str], run: Path, *words: str, core: str | None) -> list[str]:
    """``disa run``, on one core where it is named."""
    pinned = ["taskset", "-c", core] if core else []
    return [*pinned, sys.executable, "-m", "disa", "run", *recipe, "--set", f"run_dir={run}", *words]


def disa(recipe: list[str], run: Path, *words: str, core: str | None = None) -> None:
    """Run to the end."""
    subprocess.run(command(recipe, run, *words, core=core), check=True, stdout=subprocess.DEVNULL)


def workers(recipe: list[str], run: Path) -> None:
    """Two processes at one run directory, a core each."""
    both = [subprocess.Popen(command(recipe, run, "--until", "scoring", core=core)) for core in ("0", "1")]
    if any([process.wait() for process in both]):
        sys.exit("a worker failed")


if __name__ == "__main__":
    main()
