"""What an anchor finds beside it in a run directory, the regressor it was frozen with, and its probes."""

import dataclasses
import shutil

import numpy as np
import pytest
from test_anchor import BETA, FINGERPRINT, estimates, frozen

from disa.anchor import Anchor
from disa.anchor.frozen_files import freeze
from disa.anchor.probes import PROBES, prompt_digest, take_probes
from disa.errors import DisaError
from disa.partition.features import features_fingerprint
from disa.partition.regressor_fit import fit_regressor
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, ScoredTrajectory


def scored(prompt_id, source, ids=(1, 2), log_ref=-1.0):
    return ScoredTrajectory(prompt_id, 0, source, "12", list(ids), False, log_ref, log_ref, log_ref, 1.0)


def test_its_trajectories_are_the_decided_ones_of_scoring(finished_run, tmp_path):
    rows = [r for f in sorted((finished_run / "3_scoring").glob("*.parquet")) for r in read_rows(f, ScoredTrajectory)]
    assert Anchor.load(finished_run / "5_anchor").trajectories() == [row for row in rows if row.reward is not None]
    shutil.copytree(finished_run / "5_anchor", tmp_path / "5_anchor")
    with pytest.raises(DisaError, match="no trajectories beside the anchor"):
        Anchor.load(tmp_path / "5_anchor").trajectories()
    with pytest.raises(DisaError, match="no trajectories beside the anchor"):
        Anchor({}, FINGERPRINT, (0.0, 1.0), binary=True).trajectories()


def test_the_ends_of_the_range_are_frozen_with_their_rounding_and_no_more(tmp_path):
    rows = estimates()
    for i, log_z in enumerate((0.0, BETA, -5e-10, BETA + 5e-10)):
        end = [dataclasses.replace(rows[0], log_z=log_z), *rows[1:]]
        assert frozen(tmp_path / str(i), end).log_z(["p0"])[0] == log_z
    for log_z in (-2e-9, BETA + 2e-9):
        with pytest.raises(DisaError, match="field log_z is"):
            frozen(tmp_path / "no", [dataclasses.replace(rows[0], log_z=log_z), *rows[1:]])


def test_the_largest_beta_depends_on_the_span_of_the_rewards(tmp_path):
    anchor = frozen(tmp_path, estimates(BETA, (-1.0, 1.0)), reward_range=(-1.0, 1.0))
    assert anchor.at_inverse_temperature(349.0).fingerprint.inverse_temperature == 349.0
    with pytest.raises(DisaError, match="above 0 and below 350"):
        anchor.at_inverse_temperature(351.0)


@pytest.fixture
def regressor():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3))
    n = np.full(40, 16.0)
    k = rng.binomial(16, 1 / (1 + np.exp(-features[:, 0])))
    return fit_regressor(k, n, features, features_fingerprint=features_fingerprint(FINGERPRINT))


def test_an_anchor_is_loaded_with_the_regressor_it_was_frozen_with_and_predicts(tmp_path, regressor):
    regressor.save(tmp_path / "regressor.npz")
    rows = estimates()
    freeze(
        tmp_path / "a", rows, FINGERPRINT, reward_range=(0.0, 1.0), binary=True, regressor=tmp_path / "regressor.npz"
    )
    anchor = Anchor.load(tmp_path / "a")
    unknown = [Prompt(i, "t", "train", i, "{}", None) for i in ("new", "p0")]
    features = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    predicted = anchor.predict(unknown, [[1, 2], [3]], features)
    expected = regressor.predict(features, beta=BETA, reward_range=(0.0, 1.0), level=0.9)
    assert predicted.log_z(["new"])[0] == expected.log_z[0]
    assert predicted.estimates["p0"] == rows[0]  # what was estimated stays
    predicted.verify_prompts({"new": [1, 2]})
    with pytest.raises(DisaError, match="prompt new: its 2 token ids.*chat template changed"):
        predicted.verify_prompts({"new": [1, 3]})
    with pytest.raises(DisaError, match="1 rows of features and 2 of token ids for 2 prompts"):
        anchor.predict(unknown, [[1, 2], [3]], features[:1])


def test_without_a_regressor_nothing_is_predicted(tmp_path):
    prompt = [Prompt("new", "t", "train", "x", "{}", None)]
    for anchor in (frozen(tmp_path), Anchor({}, FINGERPRINT, (0.0, 1.0), binary=True)):
        with pytest.raises(DisaError, match="holds no regressor.*partition.regressor: true"):
            anchor.predict(prompt, [[1]], np.zeros((1, 3)))


def test_probes_prefer_the_references_own_draws():
    ids = {"a": [1], "b": [2], "c": [3], "d": [4]}
    rows = [
        scored("a", "proposal", [5], -5.0),
        scored("a", "reference", [6], -6.0),
        scored("a", "reference", [7], -7.0),
        scored("b", "reference", [8], -8.0),
        scored("b", "proposal", [9], -9.0),
        scored("c", "proposal", [10], -10.0),
        scored("d", "reference", [], 0.0),
        scored("elsewhere", "reference", [11], -11.0),
    ]
    probes = {p.prompt_id: p for p in take_probes(ids, rows)}
    assert {i: (p.completion_ids, p.log_ref) for i, p in probes.items()} == {
        "a": ([6], -6.0),
        "b": ([8], -8.0),
        "c": ([10], -10.0),
        "d": (None, None),
    }
    assert probes["d"].prompt_digest == prompt_digest([4]) != prompt_digest([1])


@pytest.mark.parametrize("prompts", [1, PROBES, PROBES + 1, 5 * PROBES])
def test_completions_are_kept_of_few_prompts_and_digests_of_all(prompts):
    ids = {f"p{i:03d}": [i] for i in range(prompts)}
    probes = take_probes(ids, [scored(i, "reference") for i in ids])
    assert [p.prompt_id for p in probes] == sorted(ids)
    tried = [p for p in probes if p.completion_ids is not None]
    assert PROBES / 2 < len(tried) <= PROBES or len(tried) == prompts
    assert all(p.prompt_digest == prompt_digest(ids[p.prompt_id]) for p in probes)


def test_prompts_that_no_probe_knows_pass_and_changed_ones_do_not(tmp_path):
    freeze(
        tmp_path, estimates(), FINGERPRINT, reward_range=(0.0, 1.0), binary=True, probes=take_probes({"p0": [1, 2]}, [])
    )
    anchor = Anchor.load(tmp_path)
    anchor.verify_prompts({"p0": [1, 2], "p1": [3]})
    with pytest.raises(DisaError, match="prompt p0.*its 3 token ids have digest"):
        anchor.verify_prompts({"p0": [1, 2, 3]})


def test_without_a_bound_of_its_own_an_anchor_allows_a_thousandth_of_a_nat_per_token(tmp_path):
    assert frozen(tmp_path).probe_bound == 1e-3
