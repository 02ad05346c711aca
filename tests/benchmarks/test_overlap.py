"""benchmarks/overlap.py: its errors are those of the estimates that it makes, and it goes through every candidate."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from disa.partition.log_weights import log_z_from_q
from disa.partition.pilot import PilotCandidate
from tiny_qwen import maths_rows, write_model

BETA = 3.0


@pytest.fixture
def overlap(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("overlap")


def test_the_error_of_reference_draws_is_that_of_the_pass_rate(overlap):
    # All of the first prompt's draws are solved and none of the second's: every subset says the same.
    rewards, prompt = np.repeat([1.0, 0.0], 20), np.repeat([0, 1], 20)
    truth = np.array([0.5, 0.1])
    one = PilotCandidate("reference", None, 1.0, 2.0, {})
    sizes = overlap.Sizes(budget=8, repeats=3)
    given = np.full(40, -1.0), ["reference"] * 40, rewards, prompt, truth, BETA, sizes, "reference"
    q = np.array([8.5, 0.5]) / 9
    assert overlap.measured(one, *given) == pytest.approx((log_z_from_q(q, BETA, (0.0, 1.0)) - truth) ** 2, rel=1e-12)


def test_a_candidate_that_costs_twice_as_much_gets_half_as_many_draws(overlap, monkeypatch):
    seen = []

    def estimate(rewards, **given):
        seen.append((len(rewards), int(given["from_reference"].sum())))
        return type("Batch", (), {"log_z": np.zeros(2)})

    monkeypatch.setattr(overlap, "estimate_log_partition_batch", estimate)
    source = ["reference"] * 20 + ["bridge"] * 20
    rows = (
        np.full(40, -1.0),
        source,
        np.ones(40),
        np.tile([0, 1], 20),
        np.zeros(2),
        BETA,
        overlap.Sizes(budget=8, repeats=1),
    )
    overlap.measured(PilotCandidate("bridge", np.full(40, -1.0), 0.25, 4.0, {}), *rows, "bridge")
    assert seen == [(2 * 4, 2 * 1)]  # four draws for each of two prompts, one of them the reference's


def test_every_candidate_is_compared_and_a_second_run_draws_nothing(overlap, tmp_path, monkeypatch, capsys):
    rows = [{"prompt": row["question"], "answer": row["answer"][-1], "solution": "add"} for row in maths_rows(1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "run_dir": str(tmp_path / "run"),
        "models": {name: write_model(tmp_path / name, seed) for seed, name in enumerate(["reference", "proposal"])},
        "tasks": {"name": "dataset", "sources": [{"path": str(tmp_path / "rows.jsonl"), "verifier": "maths"}]},
        "sampling": {"max_completion_length": 4, "conversational": True},
        "training": {"inverse_temperature": BETA, "prompts_per_step": 4},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    sizes = ["--prompts", "3", "--truth", "40", "--pool", "8", "--budget", "6", "--repeats", "5"]
    monkeypatch.setattr(sys, "argv", ["overlap.py", str(tmp_path / "tiny.yaml"), *sizes])
    overlap.main()
    said = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")]
    names = [row[0] for row in cells[2:]]
    blends = [f"{kind} {values}" for kind in ("bridge", "hinted") for values in ("0.3, 0.5", "0.3", "0.5")]
    assert names == ["reference", "proposal", *blends, "tempered 1.5"]
    assert all(0 < float(row[-1].split()[0]) < BETA for row in cells[2:])

    def no_draw(*args, **how):
        raise AssertionError("drawn again")

    monkeypatch.setattr(overlap, "run_proposals", no_draw)
    overlap.main()
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == [
        line for line in said.splitlines() if line.startswith("|")
    ]
