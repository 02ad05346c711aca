import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from six_outcomes import GRADES, PASSES, sample

import disa
from disa.errors import DisaError
from disa.partition import LogPartition, estimate_log_partition, estimate_log_partition_batch
from disa.partition.estimate import EstimatorName, Interval
from disa.partition.log_weights import log_z_from_q, soft_success
from disa.partition.verdict import FLAGS

METHODS = EstimatorName.__args__
ONE = {"log_ref": [-1.0], "log_proposal": [-2.0], "from_reference": [True]}
FLOATS = [f.name for f in dataclasses.fields(LogPartition) if f.type == "float"]


def ragged(seed, prompts=12, rewards=GRADES):
    """Prompts of different sizes, in one set of flat arrays."""
    rng, parts = np.random.default_rng(seed), []
    for i in range(prompts):
        part = sample(rng, 1, int(rng.integers(1, 40)), int(rng.integers(0, 120)), rewards)
        parts.append(part | {"prompt_index": part["prompt_index"] + i})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def assert_same(a, b):
    for name in FLOATS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(a.interval, b.interval, rtol=1e-9, atol=1e-9)
    assert (a.n, a.n_reference, a.method, a.flags, a.pareto_status) == (
        b.n,
        b.n_reference,
        b.method,
        b.flags,
        b.pareto_status,
    )


@pytest.mark.parametrize("interval", ["gamma", "betting"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_prompts_one_by_one(method, interval):
    arrays = ragged(0)
    batch = estimate_log_partition_batch(**arrays, beta=5.0, method=method, interval=interval)
    for i in range(len(batch)):
        own = arrays["prompt_index"] == i
        single = {key: values[own] for key, values in arrays.items() if key != "prompt_index"}
        assert_same(
            batch.row(i),
            estimate_log_partition(single.pop("rewards"), **single, beta=5.0, method=method, interval=interval),
        )


@pytest.mark.parametrize("interval", ["gamma", "betting"])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_draws_does_not_matter(method, interval):
    arrays = ragged(1)
    order = np.random.default_rng(2).permutation(len(arrays["rewards"]))
    shuffled = {key: values[order] for key, values in arrays.items()}
    settings_ = {"beta": 5.0, "method": method, "interval": interval}
    a, b = (estimate_log_partition_batch(**x, **settings_) for x in (arrays, shuffled))
    for i in range(len(a)):
        assert_same(a.row(i), b.row(i))


@pytest.mark.parametrize("size", [1e4, -1e4, 1e8])
@pytest.mark.parametrize("beta", [1e-6, 15.0, 1e3])
@pytest.mark.parametrize("interval", ["gamma", "betting"])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_weights_and_temperatures_give_finite_estimates_in_range(method, interval, beta, size):
    rng = np.random.default_rng(3)
    n = 60
    log_w = size * rng.random(n)
    for reference in (15, 60, 0):
        if method == "pass_rate" and not reference:
            continue
        est = estimate_log_partition(
            rng.random(n).round(1),
            log_ref=np.full(n, -1e6),
            log_proposal=-1e6 - log_w,
            from_reference=np.arange(n) < reference,
            beta=beta,
            method=method,
            interval=interval,
        )
        assert 0 <= est.interval[0] <= est.log_z <= est.interval[1] <= beta * (1 + 1e-12)
        assert 0 <= est.q <= 1
        assert np.isfinite([est.ess, est.hits_ess, est.mean_weight]).all()
        assert 0 <= est.hits_ess <= n * (1 + 1e-12) and 0 <= est.ess <= n * (1 + 1e-12)


def test_effective_sample_size_distinguishes_weights_beyond_the_range_of_floats():
    est = estimate_log_partition(
        [1.0, 1.0, 1.0],
        log_ref=[0.0, 0.0, 0.0],
        log_proposal=[-1e4, -1e4, -5e3],
        from_reference=[False] * 3,
        beta=15.0,
    )
    assert est.ess == pytest.approx(2.0, abs=1e-12) and est.hits_ess == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize("beta", [1e-9, 1e-3, 1.0, 15.0, 700.0, 701.0, 1e3])
def test_soft_success_and_log_z_equal_high_precision_arithmetic(beta):
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    for u in (0.0, 0.3, 0.999, 1.0):
        b, exact = Decimal(beta), Decimal(beta).exp() - 1
        s = ((b * Decimal(u)).exp() - 1) / exact
        # exp amplifies the rounding of its argument by its size: beta times 1e-16.
        assert soft_success(np.array([u]), beta, (0.0, 1.0))[0] == pytest.approx(float(s), rel=4e-16 * max(beta, 4))
    for q in (0.0, 1e-12, 0.3, 1.0):
        log_z = (1 + exact * Decimal(q)).ln()
        assert log_z_from_q(np.array([q]), beta, (0.0, 1.0))[0] == pytest.approx(float(log_z), rel=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_log_z_over_beta_tends_to_the_mean_reward_as_beta_tends_to_zero(method):
    arrays = ragged(4, prompts=3)
    arrays["from_reference"] = np.ones(len(arrays["rewards"]), dtype=bool)
    batch = estimate_log_partition_batch(**arrays, beta=1e-9, method=method)
    # At beta -> 0, s is the reward: q and log Z / beta agree to first order, that is to relative 1e-9.
    np.testing.assert_allclose(batch.log_z / 1e-9, batch.q, rtol=1e-8)
    if method in ("anchored", "is", "tis", "psis", "snis"):
        np.testing.assert_allclose(batch.q, batch.mean_reward_reference, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    betas=st.lists(st.floats(1e-3, 100.0), min_size=2, max_size=2),
    graded=st.booleans(),
)
def test_log_z_grows_with_beta_but_no_faster_than_the_largest_reward(seed, betas, graded):
    arrays = ragged(seed, 2, GRADES if graded else PASSES)
    # With graded rewards only the anchored form is monotone: the regression coefficient changes with beta.
    method = "anchored" if graded else "mixture"
    low, high = sorted(betas)
    a, b = (estimate_log_partition_batch(**arrays, beta=beta, method=method) for beta in (low, high))
    assert (b.log_z >= a.log_z - 1e-9).all()
    assert (b.log_z - a.log_z <= high - low + 1e-9).all()


@pytest.mark.parametrize("method", METHODS)
def test_moving_and_stretching_the_reward_range_moves_log_z_by_beta_times_the_shift(method):
    arrays = ragged(5)
    plain = estimate_log_partition_batch(**arrays, beta=6.0, method=method)
    moved = arrays | {"rewards": 2 * arrays["rewards"] - 3}
    other = estimate_log_partition_batch(**moved, beta=3.0, reward_range=(-3.0, -1.0), method=method)
    np.testing.assert_allclose(other.log_z, plain.log_z - 9.0, atol=1e-9)
    np.testing.assert_allclose(other.interval_low, plain.interval_low - 9.0, atol=1e-9)
    np.testing.assert_allclose(other.q, plain.q, atol=1e-12)


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("interval", Interval.__args__)
@pytest.mark.parametrize("method", METHODS)
def test_one_trajectory_gives_an_estimate_inside_a_wide_interval(method, interval, reward):
    est = estimate_log_partition([reward], **ONE, beta=15.0, method=method, interval=interval)
    assert 0 <= est.interval[0] <= est.log_z <= est.interval[1] <= 15.0 + 1e-12
    assert {"few_hits", "wide_interval"} <= set(est.flags)
    assert est.n == est.n_reference == 1 and est.pareto_status == "few_draws"


def test_zero_hits_count_as_half_a_hit_in_one_more_draw_where_the_models_agree():
    n = 40
    est = estimate_log_partition(
        np.zeros(n), log_ref=np.zeros(n), log_proposal=np.zeros(n), from_reference=np.arange(n) < 10, beta=15.0
    )
    assert est.q == pytest.approx(1 / 82)
    assert est.log_z == pytest.approx(math.log1p(math.expm1(15.0) / 82))
    assert est.hits_ess == 0.0


def test_no_reference_draws_are_flagged_and_have_no_mean_reward():
    est = estimate_log_partition([1.0, 0.0], log_ref=[-1.0] * 2, log_proposal=[-1.0] * 2, source=[1, 1], beta=15.0)
    assert "no_reference" in est.flags and math.isnan(est.mean_reward_reference) and est.n_reference == 0


def test_good_data_raises_no_flag_and_every_flag_has_an_instruction():
    batch = estimate_log_partition_batch(**sample(np.random.default_rng(6), 200, 256, 768, PASSES), beta=15.0)
    assert set(batch.flags) == {()}
    assert all(len(text) > 40 for text in FLAGS.values())


def test_the_flags_meanings_stand_on_one_page_as_they_stand_in_the_code():
    rows = {}
    for page in sorted((Path(__file__).parents[2] / "docs").rglob("*.md")):
        found = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", page.read_text("utf-8"), re.MULTILINE)
        rows |= {(page.name, name): f"{meaning}: {remedy}".replace("`", "") for name, meaning, remedy in found}
    assert {key: text for key, text in rows.items() if key[1] in FLAGS} == {
        ("concepts.md", name): text for name, text in FLAGS.items()
    }


def test_public_names_are_reachable_from_the_package_root():
    assert disa.estimate_log_partition is estimate_log_partition
    assert disa.estimate_log_partition_batch is estimate_log_partition_batch


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": [2.0]}, r"rewards, element 0: is 2.0, expected a reward in \[0.0, 1.0\]"),
        ({"rewards": [math.nan]}, "rewards, element 0: is nan"),
        ({"rewards": []}, "rewards is empty"),
        ({"rewards": [[1.0]]}, "rewards has shape"),
        ({"beta": 0.0}, "beta is 0.0, expected a finite positive"),
        ({"beta": math.inf}, "beta is inf"),
        ({"reward_range": (1.0, 1.0)}, "reward_range is"),
        ({"log_ref": [math.nan]}, "log_ref, element 0: is nan"),
        ({"log_ref": [-1.0, -2.0]}, r"log_ref has shape \(2,\), expected \(1,\)"),
        ({"log_ref": [-math.inf]}, "finite value under the model the draw came from"),
        ({"log_proposal": [math.inf]}, "log_proposal, element 0: is"),
        ({"log_proposal": [-math.inf], "from_reference": [False]}, "finite value under the model"),
        ({"log_proposal": [[1.0], [1.0]]}, "log_proposal has shape"),
        ({"log_proposal": None, "from_reference": [False]}, "log_proposal is not given"),
        ({"from_reference": None}, "give from_reference or source, found neither"),
        ({"source": [0]}, "give from_reference or source, found both"),
        ({"from_reference": [1]}, "from_reference has type int64, expected bool"),
        ({"from_reference": [True, True]}, r"sources have shape \(2,\)"),
        ({"from_reference": None, "source": [2]}, "source, element 0: is 2, expected an integer from 0 to 1"),
        ({"from_reference": None, "source": [0.0]}, "expected integers"),
        ({"lengths": [-1.0]}, "lengths, element 0"),
        ({"method": "best"}, "method is 'best', expected one of mixture"),
        ({"interval": "normal"}, "interval is 'normal', expected one of gamma"),
        ({"level": 1.0}, "level is 1.0"),
        ({"method": "pass_rate", "from_reference": [False]}, "pass_rate needs reference draws"),
        ({"interval": "clopper_pearson", "from_reference": [False]}, "reference draws only"),
    ],
)
def test_bad_input_is_refused_with_the_argument_and_the_element(change, message):
    arguments = {"rewards": [1.0], **ONE, "beta": 15.0} | change
    with pytest.raises(DisaError, match=message):
        estimate_log_partition(arguments.pop("rewards"), **arguments)


@pytest.mark.parametrize(
    "index, n_prompts, message",
    [
        ([0, 2], None, "prompt 1 of 3 has no trajectory"),
        ([0, 1], 3, "prompt 2 of 3 has no trajectory"),
        ([0, 7_000_000], None, "prompt 1 of 7000001 has no trajectory"),
        ([0, 1], 1, "prompt_index, element 1: is 1, expected an index below n_prompts = 1"),
        ([0, -1], None, "prompt_index, element 1: is -1"),
        ([0.0, 1.0], None, "expected .2,. integers"),
        ([0], None, "prompt_index has shape"),
    ],
)
def test_bad_prompt_indices_are_refused(index, n_prompts, message):
    with pytest.raises(DisaError, match=message):
        estimate_log_partition_batch(
            [1.0, 0.0],
            prompt_index=index,
            n_prompts=n_prompts,
            log_ref=[-1.0] * 2,
            from_reference=[True] * 2,
            beta=1.0,
        )
