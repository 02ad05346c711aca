"""The regressor as the partition stage, the anchor and ``disa inspect`` use it."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from scipy.special import expit

from disa.anchor import Anchor
from disa.anchor.frozen_files import freeze
from disa.cli.inspect import inspect_path
from disa.cli.main import main
from disa.errors import DisaError
from disa.partition.config import PartitionConfig
from disa.partition.features import features_fingerprint
from disa.partition.regression import PromptFeatures
from disa.partition.stage import run_partition
from disa.runs.folders import StageFolder
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate, Prompt, ScoredTrajectory

BETA, RANGE, DRAWS = 5.0, (0.0, 1.0), 8
FINGERPRINT = Fingerprint("ref", "tok", "none", 1.0, 8, (0,), "r:1[0.0, 1.0]", BETA, "t:1")
# Split and number of prompts; the last of each of the first two have no trajectory.
SPLITS = {"train": 80, "validation": 10, "heldout": 30}
UNDRAWN = {"train": 5, "validation": 10}


@pytest.fixture(scope="module")
def world():
    """Prompts whose difficulty the first of three features carries, 8 reference draws each."""
    rng = np.random.default_rng(0)
    prompts = [Prompt(f"{s}{i:03d}", "t", s, "?", "{}", None) for s, n in SPLITS.items() for i in range(n)]
    features = rng.normal(size=(len(prompts), 3))
    q = expit(-1.5 + 1.8 * features[:, 0] + 0.4 * rng.normal(size=len(prompts)))
    undrawn = {p.prompt_id for s, n in UNDRAWN.items() for p in [p for p in prompts if p.split == s][-n:]}
    rows = [
        ScoredTrajectory(p.prompt_id, d, "reference", "", [1, 0], False, -1.0, -1.0, -1.0, float(rng.random() < chance))
        for p, chance in zip(prompts, q, strict=True)
        for d in range(DRAWS)
        if p.prompt_id not in undrawn
    ]
    by_prompt = {p.prompt_id: f for p, f in zip(prompts, features, strict=True)}
    return prompts, rows, PromptFeatures(by_prompt, features_fingerprint(FINGERPRINT)), np.log1p(np.expm1(BETA) * q)


def estimate(folder, world, features=True):
    prompts, rows, given, _ = world
    stage = StageFolder(folder, "4_partition", version=1, identity={}, inputs={})
    stage.begin()
    run_partition(stage, PartitionConfig(), BETA, RANGE, prompts, rows, given if features else None)
    return stage


@pytest.fixture(scope="module")
def stage(world, tmp_path_factory):
    return estimate(tmp_path_factory.mktemp("run"), world)


@pytest.fixture(scope="module")
def anchor_folder(stage, tmp_path_factory):
    path = tmp_path_factory.mktemp("frozen") / "5_anchor"
    evidence = {name: stage.manifest[name] for name in ("null_test", "coverage", "regressor")}
    facts = freeze(
        path,
        stage.rows(PartitionEstimate),
        FINGERPRINT,
        reward_range=RANGE,
        binary=True,
        evidence=evidence,
        regressor=stage.path / "regressor.npz",
    )
    assert facts["evidence"] == evidence
    return path


def test_every_prompt_gets_its_posterior_and_those_without_trajectories_a_prediction(world, stage):
    prompts, _, _, _ = world
    rows = {row.prompt_id: row for row in stage.rows(PartitionEstimate)}
    assert set(rows) == {p.prompt_id for p in prompts}
    predicted = [row for row in rows.values() if row.method == "predicted"]
    assert len(predicted) == sum(UNDRAWN.values())
    assert all(row.n == 0 and "predicted" in row.flags for row in predicted)
    own = [row for row in rows.values() if row.method == "posterior"]
    assert len(own) == len(rows) - len(predicted) and all(row.n == DRAWS for row in own)
    assert all(row.interval_low <= row.log_z <= row.interval_high for row in rows.values())
    assert stage.manifest["verdict"]["flags"]["predicted"]["prompts"] == len(predicted)


def test_borrowing_strength_lowers_the_error_by_a_quarter_at_eight_draws(world, stage, tmp_path):
    prompts, rows, _, log_z = world
    drawn = {row.prompt_id for row in rows}
    kept = [p for p in prompts if p.prompt_id in drawn]
    plain = estimate(tmp_path, (kept, rows, None, None), features=False).rows(PartitionEstimate)
    exact = dict(zip((p.prompt_id for p in prompts), log_z, strict=True))

    def rmse(found):
        return math.sqrt(np.mean([(row.log_z - exact[row.prompt_id]) ** 2 for row in found if row.prompt_id in drawn]))

    assert rmse(stage.rows(PartitionEstimate)) < 0.75 * rmse(plain)


def test_the_report_judges_prompts_outside_the_fit(stage):
    report = stage.manifest["regressor"]
    assert report["prompts"] == SPLITS["heldout"]
    assert report["r2_logit_q"] > 0.3 and report["nll"] < report["nll_constant"]
    assert report["rmse"] < report["rmse_constant"]


def test_the_same_work_writes_the_same_bytes(world, stage, tmp_path):
    again = estimate(tmp_path, world)
    assert (again.path / "regressor.npz").read_bytes() == (stage.path / "regressor.npz").read_bytes()
    assert again.content == stage.content


def test_too_few_training_prompts_are_refused_with_the_setting(world, tmp_path):
    prompts, rows, features, _ = world
    few = [p for p in prompts if p.split != "train" or p.prompt_id < "train019"]
    names = {p.prompt_id for p in few}
    with pytest.raises(DisaError, match="19 training prompts .* at least 20.*partition.regressor: false"):
        estimate(tmp_path, (few, [row for row in rows if row.prompt_id in names], features, None))


def test_the_anchor_predicts_new_prompts_and_keeps_what_is_frozen(world, anchor_folder):
    _, _, features, _ = world
    anchor = Anchor.load(anchor_folder)
    new = [Prompt("new", "t", "train", "?", "{}", None), Prompt("train000", "t", "train", "?", "{}", None)]
    at = np.array([[2.0, 0.0, 0.0], [-9.0, 0.0, 0.0]])
    extended = anchor.predict(new, [[1], [2]], at)
    assert extended.estimates["train000"] == anchor.estimates["train000"]
    assert "new" not in anchor.estimates and extended.estimates["new"].method == "predicted"
    easier, harder = (anchor.predict(new[:1], [[1]], sign * at[:1]).log_z(["new"])[0] for sign in (1, -1))
    assert 0 <= harder < easier <= BETA


def test_a_posterior_mean_is_not_moved_to_another_inverse_temperature(anchor_folder):
    with pytest.raises(DisaError, match="posterior means"):
        Anchor.load(anchor_folder).at_inverse_temperature(3.0)


def test_an_anchor_without_a_regressor_says_how_to_get_one(anchor_folder, tmp_path):
    rows = list(Anchor.load(anchor_folder).estimates.values())
    freeze(tmp_path, rows, FINGERPRINT, reward_range=RANGE, binary=True)
    with pytest.raises(DisaError, match="no regressor.*partition.regressor: true"):
        Anchor.load(tmp_path).predict([], [], np.zeros((0, 3)))


def test_an_anchor_whose_regressor_was_exchanged_added_or_removed_is_refused(anchor_folder, tmp_path):
    folder = tmp_path / "anchor"
    shutil.copytree(anchor_folder, folder)
    path = folder / "regressor.npz"
    content, digest = path.read_bytes(), json.loads((folder / "manifest.json").read_text())["anchor"]["regressor"]
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(DisaError, match=f"regressor.npz is not the one .* manifest says {digest}.*Fix: rerun"):
            Anchor.load(folder)
    path.unlink()
    with pytest.raises(DisaError, match=f"digest None, manifest says {digest}"):
        Anchor.load(folder)
    freeze(folder, list(Anchor.load(anchor_folder).estimates.values()), FINGERPRINT, reward_range=RANGE, binary=True)
    path.write_bytes(content)
    with pytest.raises(DisaError, match=f"digest {digest}, manifest says None"):
        Anchor.load(folder)


def test_a_regressor_of_other_features_is_refused_with_the_anchor(anchor_folder, tmp_path):
    rows = list(Anchor.load(anchor_folder).estimates.values())
    other = dataclasses.replace(FINGERPRINT, tokenizer="another")
    # Frozen whole, but for a tokenizer whose features the regressor never saw.
    freeze(tmp_path, rows, other, reward_range=RANGE, binary=True, regressor=anchor_folder / "regressor.npz")
    theirs, ours = features_fingerprint(FINGERPRINT), features_fingerprint(other)
    with pytest.raises(DisaError, match=f"features_fingerprint is {theirs}, .* {ours}.*Fix: compute the features"):
        Anchor.load(tmp_path)


def test_inspect_prints_the_evidence_for_people_and_as_json(anchor_folder, tmp_path, capsys):
    inspect_path(str(anchor_folder), as_json=True, figures=str(tmp_path))
    result = json.loads(capsys.readouterr().out)
    assert result["regressor"]["prompts"] == SPLITS["heldout"]
    assert len(result["worst"]) == 10 and result["good"] + result["gated"] + result["flagged"] == result["prompts"]
    assert all((tmp_path / f"{name}.png").is_file() for name in ("log_z", "ess", "flags"))
    inspect_path(str(anchor_folder), as_json=False, figures=None)
    text = " ".join(capsys.readouterr().out.split())
    assert f"regressor on {SPLITS['heldout']} prompts outside its fit" in text


def stored_scores(run, rows):
    scoring = StageFolder(run, "3_scoring", version=1, identity={}, inputs={})
    scoring.begin()
    scoring.write_part("part-0", rows, ScoredTrajectory)


def test_inspect_sweeps_inverse_temperatures_from_the_runs_trajectories(world, stage, tmp_path, capsys):
    prompts, rows, _, _ = world
    drawn = {row.prompt_id for row in rows}
    plain = estimate(tmp_path, ([p for p in prompts if p.prompt_id in drawn], rows, None, None), features=False)
    estimates = plain.rows(PartitionEstimate)
    freeze(tmp_path / "5_anchor", estimates, FINGERPRINT, reward_range=RANGE, binary=True)
    results = []
    for stored in (False, True):
        if stored:
            stored_scores(tmp_path, rows)
        assert main(["inspect", str(tmp_path), "--json", "--inverse-temperature", f"1,{BETA}"]) == 0
        results.append(json.loads(capsys.readouterr().out)["sweep"])
    # Two-valued rewards: from the anchor's q and from the trajectories, the same to rounding and the difference step.
    for from_anchor, from_rows in zip(*results, strict=True):
        assert from_rows == pytest.approx(from_anchor, rel=1e-6, abs=1e-6)
    at_beta = results[0][1]
    train = [row.log_z for row in estimates if row.split == "train"]
    assert at_beta["log_z"] == pytest.approx(np.median(train))
    assert 0 < at_beta["mean_reward"] < 1 and at_beta["kl"] > 0
    assert main(["inspect", str(tmp_path), "--inverse-temperature", "0"]) == 2
    assert "inverse temperature 0" in capsys.readouterr().err


def test_inspect_does_not_sweep_a_regressors_posterior_means(world, anchor_folder, tmp_path, capsys):
    _, rows, _, _ = world
    shutil.copytree(anchor_folder, tmp_path / "5_anchor")
    stored_scores(tmp_path, rows)
    assert main(["inspect", str(tmp_path), "--inverse-temperature", "3"]) == 2
    message = capsys.readouterr().err
    assert "posterior means" in message and "training.inverse_temperature=3.0" in message
