"""Peak memory and time of stored trajectories on their way to a training batch, by their number.

Trajectories of random tokens are written as ``3_scoring`` holds them. Reading them by blocks as scoring does, an
estimate of log Z as the partition stage makes it, the same from an object per row, as it was made before, and batches
for the forward projection each run in a process of their own. Memory is its largest resident size above that at the
start of the work. What a larger number would take is told in proportion.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from page import fill, table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
NUMBERS, TOKENS, PER_PROMPT, PER_PART = (20_000, 40_000), 1000, 64, 4096
TOLD = 1_000_000
WORKS = ("scoring's reading", "partition", "partition, an object per row", "forward projection")


def write(folder: Path, number: int) -> None:
    """Write scored trajectories in parts."""
    from disa.runs.parquet_rows import write_rows
    from disa.runs.records import ScoredTrajectory

    generator = np.random.default_rng(0)
    for start in range(0, number, PER_PART):
        rows = []
        for i in range(start, min(start + PER_PART, number)):
            ids = generator.integers(0, 150_000, TOKENS).tolist()
            reference = i % 4 == 0
            log_ref, log_proposal = (-300.0 + x for x in generator.normal(0, 2, 2))
            rows.append(
                ScoredTrajectory(
                    prompt_id=f"{i // PER_PROMPT:016d}",
                    draw=i,
                    source="reference" if reference else "proposal",
                    completion=" ".join(map(str, ids)),
                    completion_ids=ids,
                    truncated=False,
                    log_sampler=log_ref if reference else log_proposal,
                    log_ref=log_ref,
                    log_proposal=log_proposal,
                    reward=float(generator.random() < 0.3),
                )
            )
        write_rows(folder / f"part-{start:08d}.parquet", rows, ScoredTrajectory)


def work(name: str, folder: Path) -> None:
    """One of them."""
    from disa.runs.folders import StageFolder
    from disa.runs.parquet_rows import StoredRows, read_rows
    from disa.runs.records import Prompt, ScoredTrajectory
    from disa.runs.scored_columns import ScoredColumns

    if name == "scoring's reading":
        stored = StoredRows(folder, ScoredTrajectory)
        for start in range(0, len(stored), PER_PART):
            assert sum(len(row.completion_ids) for row in stored[start : start + PER_PART])
        return
    columns = name == "partition"
    rows = ScoredColumns.read(sorted(folder.iterdir())) if columns else read_rows(folder, ScoredTrajectory, thin=True)
    ids = rows.ids if columns else list(dict.fromkeys(row.prompt_id for row in rows))
    if name.startswith("partition"):
        from disa.partition.config import PartitionConfig
        from disa.partition.stage import run_partition

        with tempfile.TemporaryDirectory() as run:
            stage = StageFolder(Path(run), "4_partition", version=1, identity={}, inputs={})
            stage.begin()
            prompts = [Prompt(i, "task", "train", i, "{}", None) for i in ids]
            run_partition(stage, PartitionConfig(), 4.0, (0.0, 1.0), prompts, rows)
        return
    import torch

    from disa.training.stored import StoredTrajectories
    from disa.training.trajectory_weights import equal_prompts

    stored = StoredTrajectories(rows, {i: [1, 2, 3] for i in ids}, equal_prompts(rows), seed=0)
    for number in range(4):
        assert stored.batch(number, 64, torch.device("cpu"), 0).completion_ids.shape == (64, TOKENS)


def measure(name: str, folder: Path) -> dict[str, float]:
    """One work in this process."""
    import torch  # noqa: F401 - what is loaded once does not count

    import disa.partition.stage
    import disa.training.stored  # noqa: F401

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    work(name, folder)
    seconds = time.process_time() - start
    return {"mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, "seconds": seconds}


def main() -> None:
    """Measure, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--numbers", nargs=2, type=int, default=NUMBERS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], Path(given.one[1]))))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WORKS}
    for number in given.numbers:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), number)
            for name in WORKS:
                command = [sys.executable, __file__, "--one", name, folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, number, found[name][-1], flush=True)
    fewer, more = given.numbers
    rows = []
    for name, (first, second) in found.items():
        slopes = {unit: (second[unit] - first[unit]) / (more - fewer) for unit in ("mib", "seconds")}
        told = {unit: second[unit] + max(0.0, slope) * (TOLD - more) for unit, slope in slopes.items()}
        rows.append([name, *(f"{x['mib']:.0f}" for x in (first, second)), f"{told['mib'] / 1024:.1f}"])
        rows[-1] += [f"{second['seconds']:.1f}", f"{told['seconds']:.0f}"]
    header = ["work", f"{fewer:,}, MiB", f"{more:,}, MiB", f"{TOLD:,} in proportion, GiB"]
    header += [f"{more:,}, CPU s", f"{TOLD:,} in proportion, CPU s"]
    text = [f"Trajectories of {TOKENS:,} tokens, {PER_PROMPT} of a prompt.", "", *table(header, rows)]
    fill("trajectory-memory", "\n".join(text), given.page)


if __name__ == "__main__":
    main()
