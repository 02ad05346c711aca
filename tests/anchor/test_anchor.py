"""A frozen anchor: unaltered, fitting in every field or refused, and exact at another inverse temperature."""

import dataclasses
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.anchor import Anchor
from disa.anchor.frozen_files import freeze
from disa.errors import DisaError
from disa.partition import estimate_log_partition_batch
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate

BETA = 3.0
FINGERPRINT = Fingerprint(
    reference="aaaa",
    tokenizer="bbbb",
    chat_template="none",
    temperature=1.0,
    max_completion_length=24,
    stop_token_ids=(1, 2),
    reward="countdown:1[0.0, 1.0]",
    inverse_temperature=BETA,
    task="countdown:1",
)
# Another value of every field, and what its message must offer as a fix.
OTHER = {
    "reference": ("cccc", "train against the weights the anchor was estimated for"),
    "tokenizer": ("cccc", "use the tokenizer saved beside the reference"),
    "chat_template": ("cccc", "use the reference's chat template"),
    "tools": ("ask:cccc", "give tools, environment_factory, rollout_func"),
    "temperature": (0.7, "set sampling.temperature"),
    "max_completion_length": (25, "set max_completion_length to the anchor's value"),
    "stop_token_ids": ((1,), "restore the generation config's eos_token_id"),
    "reward": ("countdown:2[0.0, 1.0]", "use the reward the anchor was estimated with"),
    "inverse_temperature": (3.5, "anchor.at_inverse_temperature"),
    "task": ("countdown:2", "regenerate the tasks"),
}


def estimates(beta=BETA, reward_range=(0.0, 1.0), rewards=None, n=16, prompts=5, seed=0):
    """Estimates of a few prompts from made-up draws of two samplers."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(prompts), n)
    log_ref = rng.normal(-8.0, 1.0, len(index))
    if rewards is None:
        rewards = np.where(rng.random(len(index)) < 0.4, reward_range[1], reward_range[0])
    batch = estimate_log_partition_batch(
        rewards,
        prompt_index=index,
        log_ref=log_ref,
        log_proposal=log_ref + rng.normal(0.0, 0.5, len(index)),
        from_reference=np.tile(np.arange(n) < n // 4, prompts),
        beta=beta,
        reward_range=reward_range,
    )
    return [
        PartitionEstimate(
            prompt_id=f"p{i}",
            split="train",
            log_z=float(batch.log_z[i]),
            q=float(batch.q[i]),
            interval_low=float(batch.interval_low[i]),
            interval_high=float(batch.interval_high[i]),
            n=n,
            n_reference=n // 4,
            mean_reward_reference=0.0,
            ess=1.0,
            hits_ess=1.0,
            mean_weight=1.0,
            pareto_k=None,
            method="mixture",
            flags=["few_hits"] if i == 2 else [],
        )
        for i in range(prompts)
    ]


def frozen(folder, rows=None, fingerprint=FINGERPRINT, reward_range=(0.0, 1.0), binary=True):
    freeze(folder, rows if rows is not None else estimates(), fingerprint, reward_range=reward_range, binary=binary)
    return Anchor.load(folder)


@pytest.fixture
def anchor(tmp_path):
    return frozen(tmp_path)


def test_what_is_loaded_is_what_was_frozen(tmp_path):
    rows = estimates()
    anchor = frozen(tmp_path, rows, reward_range=(0.0, 1.0), binary=False)
    assert list(anchor.estimates.values()) == rows
    assert (anchor.fingerprint, anchor.reward_range, anchor.binary) == (FINGERPRINT, (0.0, 1.0), False)
    assert anchor.path == tmp_path
    anchor.verify(FINGERPRINT)


def test_log_z_comes_in_the_order_of_the_prompts_asked_for_also_repeated(anchor):
    rows = anchor.estimates
    found = anchor.log_z(["p3", "p0", "p3"])
    assert found.dtype == np.float64
    assert found.tolist() == [rows["p3"].log_z, rows["p0"].log_z, rows["p3"].log_z]
    assert anchor.log_z([]).shape == (0,)


def test_a_prompt_without_an_estimate_is_refused_by_name(anchor):
    with pytest.raises(DisaError, match="no log Z for prompt lonely; the anchor holds 5 prompts. Fix: "):
        anchor.log_z(["p0", "lonely"])


def test_nothing_of_a_loaded_anchor_can_be_assigned(anchor):
    with pytest.raises(TypeError):
        anchor.estimates["p0"] = anchor.estimates["p1"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        anchor.estimates["p0"].log_z = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        anchor.binary = False
    with pytest.raises(dataclasses.FrozenInstanceError):
        anchor.fingerprint.temperature = 2.0
    anchor.log_z(["p0"])[0] = 99.0
    assert anchor.log_z(["p0"])[0] != 99.0


def test_every_field_of_the_fingerprint_has_a_test_below():
    assert OTHER.keys() == {f.name for f in dataclasses.fields(Fingerprint)}


@pytest.mark.parametrize("name", OTHER)
def test_another_value_of_any_field_is_refused_naming_it_both_values_and_the_fix(anchor, name):
    found, fix = OTHER[name]
    other = dataclasses.replace(FINGERPRINT, **{name: found})
    with pytest.raises(DisaError) as error:
        anchor.verify(other)
    shown = [list(v) if isinstance(v, tuple) else v for v in (found, getattr(FINGERPRINT, name))]
    assert f"anchor does not fit: {name} is {shown[0]}, the anchor was estimated for {shown[1]}" in str(error.value)
    assert str(anchor.path) in str(error.value)
    assert f"Fix: {fix}" in str(error.value) or fix in str(error.value).split("Fix: ")[1]


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from(sorted(OTHER)), min_size=1))
def test_any_combination_of_differences_is_refused(names):
    anchor = Anchor({}, FINGERPRINT, (0.0, 1.0), binary=True)
    other = dataclasses.replace(FINGERPRINT, **{name: OTHER[name][0] for name in names})
    assert {name for name, _, _ in FINGERPRINT.differences(other)} == names
    with pytest.raises(DisaError, match="anchor does not fit"):
        anchor.verify(other)


def test_the_fingerprint_survives_json():
    assert Fingerprint.from_dict(json.loads(json.dumps(FINGERPRINT.as_dict()))) == FINGERPRINT


def test_an_edited_estimate_is_refused(tmp_path):
    frozen(tmp_path)
    path = tmp_path / "anchor.parquet"
    table = pq.read_table(path)
    values = table["log_z"].to_pylist()
    values[0] += 1e-6
    pq.write_table(table.set_column(table.column_names.index("log_z"), table.schema.field("log_z"), [values]), path)
    with pytest.raises(DisaError, match="anchor.parquet was changed after it was frozen.*Fix: rerun the anchor stage"):
        Anchor.load(tmp_path)


def test_a_single_flipped_bit_anywhere_is_refused(tmp_path):
    frozen(tmp_path)
    path = tmp_path / "anchor.parquet"
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 25):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        # Damage may already keep the file from being read; either way nothing is loaded.
        with pytest.raises(DisaError):
            Anchor.load(tmp_path)
    path.write_bytes(content)
    Anchor.load(tmp_path)


def test_a_replaced_file_of_another_anchor_is_refused(tmp_path):
    frozen(tmp_path / "a")
    frozen(tmp_path / "b", estimates(seed=1))
    (tmp_path / "a" / "anchor.parquet").write_bytes((tmp_path / "b" / "anchor.parquet").read_bytes())
    with pytest.raises(DisaError, match="was changed after it was frozen"):
        Anchor.load(tmp_path / "a")


def test_a_folder_that_is_no_anchor_is_refused(tmp_path):
    with pytest.raises(DisaError, match="no anchor here.*Fix: "):
        Anchor.load(tmp_path / "missing")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DisaError, match="not an anchor's manifest.*Fix: give RUN/5_anchor"):
        Anchor.load(tmp_path)


def test_an_anchor_of_another_version_is_read_but_refused_for_training_saying_what_to_run(tmp_path):
    frozen(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    version = manifest["anchor"].pop("version")
    for other, found in ((manifest, 1), ({"anchor": manifest["anchor"] | {"version": version + 1}}, version + 1)):
        path.write_text(json.dumps(other))
        old = Anchor.load(tmp_path)
        assert old.estimates == {row.prompt_id: row for row in estimates()}
        for anchor in (old, old.at_inverse_temperature(BETA)):
            with pytest.raises(DisaError, match=f"anchor of version {found}, expected {version}.*--until anchor"):
                anchor.verify(FINGERPRINT)


def test_an_anchor_without_its_parquet_file_is_refused(tmp_path):
    frozen(tmp_path)
    (tmp_path / "anchor.parquet").unlink()
    with pytest.raises(DisaError, match="anchor.parquet: file not found.*Fix: "):
        Anchor.load(tmp_path)


@pytest.mark.parametrize("damage", ["digest", "fingerprint", "reward_range", "binary", "a field of the fingerprint"])
def test_a_manifest_that_lacks_something_is_refused_as_the_users_error(tmp_path, damage):
    frozen(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    if damage == "a field of the fingerprint":
        del manifest["anchor"]["fingerprint"]["temperature"]
    else:
        del manifest["anchor"][damage]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DisaError, match="manifest.json.*Fix: "):
        Anchor.load(tmp_path)


@pytest.mark.parametrize("log_z", [-0.1, BETA + 0.1, math.inf, -math.inf])
def test_a_log_z_outside_beta_times_the_reward_range_is_not_frozen(tmp_path, log_z):
    rows = estimates()
    rows[1] = dataclasses.replace(rows[1], log_z=log_z)
    with pytest.raises(DisaError, match=r"row 1, prompt p1: field log_z is .*expected a value in \[0.0, 3.0\].*Fix: "):
        frozen(tmp_path, rows)
    assert not (tmp_path / "anchor.parquet").exists()


def test_nan_and_an_empty_list_of_estimates_are_not_frozen(tmp_path):
    rows = estimates()
    rows[0] = dataclasses.replace(rows[0], log_z=math.nan)
    with pytest.raises(DisaError, match="field log_z is nan"):
        frozen(tmp_path, rows)
    with pytest.raises(DisaError, match="no estimates to freeze.*Fix: "):
        frozen(tmp_path, [])


def test_the_range_of_log_z_follows_a_negative_smallest_reward(tmp_path):
    rows = [dataclasses.replace(row, log_z=-2.0) for row in estimates()]
    assert frozen(tmp_path / "a", rows, reward_range=(-1.0, 0.0)).log_z(["p0"]) == [-2.0]
    with pytest.raises(DisaError, match=r"expected a value in \[0.0, 3.0\]"):
        frozen(tmp_path / "b", rows)


@pytest.mark.parametrize("reward_range", [(0.0, 1.0), (-1.0, 1.0), (-2.0, -0.5)])
@pytest.mark.parametrize("beta", [0.5, 5.0, 15.0])
def test_another_beta_gives_what_a_new_estimate_from_the_same_draws_gives(tmp_path, reward_range, beta):
    moved = frozen(tmp_path, estimates(BETA, reward_range), reward_range=reward_range).at_inverse_temperature(beta)
    for row in estimates(beta, reward_range):
        found = moved.estimates[row.prompt_id]
        assert found.q == pytest.approx(row.q, rel=1e-12)  # the same sum, rounded in another place
        # log1p(expm1(b) q) multiplies the relative rounding of its argument by at most one.
        expected = (row.log_z, row.interval_low, row.interval_high)
        assert (found.log_z, found.interval_low, found.interval_high) == pytest.approx(expected, abs=1e-9)
    moved.verify(dataclasses.replace(FINGERPRINT, inverse_temperature=beta))
    with pytest.raises(DisaError, match="inverse_temperature"):
        moved.verify(FINGERPRINT)


def test_moving_there_and_back_changes_nothing_and_the_anchor_itself_stays(anchor):
    before = dict(anchor.estimates)
    back = anchor.at_inverse_temperature(15.0).at_inverse_temperature(BETA)
    assert anchor.estimates == before
    assert back.fingerprint == anchor.fingerprint
    for key, row in before.items():
        assert back.estimates[key].log_z == pytest.approx(row.log_z, abs=1e-12)
        assert back.estimates[key].interval_high == pytest.approx(row.interval_high, abs=1e-9)


def test_graded_rewards_refuse_another_beta_because_it_would_be_wrong(tmp_path):
    rewards = np.tile([0.0, 0.5, 1.0, 0.25], 20)
    graded = frozen(tmp_path, estimates(rewards=rewards), binary=False)
    with pytest.raises(DisaError, match="rewards are graded.*Fix: rerun .*training.inverse_temperature=15"):
        graded.at_inverse_temperature(15.0)
    # What a careless formula would have given is off by far more than any rounding.
    careless = [math.log1p(math.expm1(15.0) * row.q) for row in graded.estimates.values()]
    exact = [row.log_z for row in estimates(15.0, rewards=rewards)]
    assert np.abs(np.subtract(careless, exact)).min() > 0.1


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf, 1e4])
def test_a_beta_without_a_target_or_beyond_floats_is_refused(anchor, beta):
    with pytest.raises(DisaError, match="inverse.temperature.*Fix: "):
        anchor.at_inverse_temperature(beta)


def test_two_estimates_of_one_prompt_are_not_frozen(tmp_path):
    rows = estimates()
    with pytest.raises(DisaError, match="prompt p0"):
        frozen(tmp_path, [*rows, rows[0]])
