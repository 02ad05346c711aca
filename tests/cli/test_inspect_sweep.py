"""The sweep of ``disa inspect``: at the anchor's own inverse temperature it is the anchor's log Z."""

import dataclasses
import json

import numpy as np
import pytest

from disa.anchor.frozen_files import freeze
from disa.cli.main import main
from disa.partition.config import PartitionConfig
from disa.partition.stage import run_partition
from disa.runs.folders import StageFolder
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory

BETA, RANGE = 5.0, (0.0, 1.0)
FINGERPRINT = Fingerprint("ref", "tok", "none", 1.0, 8, (0,), "r:1[0.0, 1.0]", BETA, "t:1")
# The median over an odd number of prompts is one prompt's log Z.
PROMPTS = [Prompt(f"{split}{i}", "t", split, "?", "{}", None) for split in ("train", "heldout") for i in range(9)]


def scored(apart=0.5):
    """Graded rewards, 8 reference and 24 proposal draws per prompt, log ratios about ``apart`` nats wide."""
    rng = np.random.default_rng(0)
    return [
        ScoredTrajectory(
            prompt.prompt_id,
            draw,
            "reference" if draw < 8 else "proposal",
            str(draw),
            [1] * int(rng.integers(1, 6)),
            False,
            None,
            -9.0,
            -9.0 - apart * float(rng.normal()),
            float(rng.choice([0.0, 0.3, 1.0])),
        )
        for prompt in PROMPTS
        for draw in range(32)
    ]


def swept(run, rows, capsys, method="mixture"):
    """Estimates of a run folder with these rows, and its sweep at its own inverse temperature."""
    scoring = StageFolder(run, "3_scoring", version=1, identity={}, inputs={})
    scoring.begin()
    scoring.write_part("part-0", rows, ScoredTrajectory)
    stage = StageFolder(run, "4_partition", version=1, identity={}, inputs={})
    stage.begin()
    run_partition(stage, PartitionConfig(method=method), BETA, RANGE, PROMPTS, rows)
    estimates = stage.rows(PartitionEstimate)
    freeze(run / "5_anchor", estimates, FINGERPRINT, reward_range=RANGE, binary=False)
    assert main(["inspect", str(run), "--json", "--inverse-temperature", str(BETA)]) == 0
    (found,) = json.loads(capsys.readouterr().out)["sweep"]
    return [row for row in estimates if row.split == "train"], found["log_z"]


@pytest.mark.parametrize("method", ["mixture", "anchored", "is", "tis", "psis", "snis", "pass_rate"])
def test_the_sweep_at_the_anchors_own_inverse_temperature_is_its_log_z(tmp_path, capsys, method):
    train, log_z = swept(tmp_path, scored(), capsys, method)
    assert {row.method for row in train} == {method}
    assert log_z == pytest.approx(np.median([row.log_z for row in train]), abs=1e-12)


def test_the_sweep_of_prompts_without_hits_learns_from_the_prompts_of_every_split(tmp_path, capsys):
    # Training prompts lack hits; those of the held-out ones are light, which tells what an unseen one would weigh.
    rows = [
        dataclasses.replace(row, reward=0.0)
        if row.prompt_id.startswith("train")
        else dataclasses.replace(row, log_proposal=-6.0 if row.reward else -9.0)
        for row in scored()
    ]
    train, log_z = swept(tmp_path, rows, capsys)
    assert {row.hits_ess for row in train} == {0.0}
    assert log_z == pytest.approx(np.median([row.log_z for row in train]), abs=1e-12)


def test_the_sweep_of_an_unknown_proposal_is_that_of_the_pass_rate(tmp_path, capsys):
    rows = [dataclasses.replace(row, log_proposal=None) for row in scored()]
    train, log_z = swept(tmp_path, rows, capsys, "pass_rate")
    assert log_z == pytest.approx(np.median([row.log_z for row in train]), abs=1e-12)
