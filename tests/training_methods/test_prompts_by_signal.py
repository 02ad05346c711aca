"""Prompts drawn by what they teach: how often, from what, and towards the same target."""

import math

import numpy as np
import pytest
from method_oracle import BETA, IDS, SIZE, World, settings
from test_balance_trainers import vargrad

from disa.errors import DisaError
from disa.runs.records import PartitionEstimate
from disa.training.disa_config import DISAConfig
from disa.training.prompt_sampler import SignalSampler, expected_signal
from disa.training.trainer import DISATrainer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("oracle") / "reference")


def sampler(signal, size=2, **changes):
    counts = {"mini_repeat_count": 1, "repeat_count": 1, "seed": 3}
    return SignalSampler(signal, batch_size=size, **counts | changes)


def estimate(low, high):
    log_z = [math.log1p(math.expm1(BETA) * q) for q in (low, high)]
    zeros = dict.fromkeys(("n", "n_reference", "mean_reward_reference", "ess", "hits_ess"), 0)
    return PartitionEstimate(
        "p", "train", log_z=log_z[0], q=low, interval_low=log_z[0], interval_high=log_z[1], **zeros,
        mean_weight=1.0, pareto_k=None, method="exact", flags=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("interval", "q"), [((0.0, 0.1), 0.1), ((0.3, 0.9), 0.5), ((0.8, 1.0), 0.8), ((0.0, 0.0), 0.0)]
)
def test_before_the_first_step_a_prompt_counts_the_largest_spread_that_its_interval_allows(interval, q):
    found = expected_signal(estimate(*interval), BETA, (0.0, 1.0))
    assert found == pytest.approx(BETA * math.sqrt(q * (1 - q)), abs=1e-9)
    # Rewards from -1 to 1 at half the inverse temperature have residuals that differ by a constant.
    shifted = estimate(*interval)
    for name in ("interval_low", "interval_high"):
        object.__setattr__(shifted, name, getattr(shifted, name) - BETA / 2)
    assert expected_signal(shifted, BETA / 2, (-1.0, 1.0)) == pytest.approx(found, abs=1e-9)


def test_rows_come_in_proportion_to_their_signal_and_none_is_given_up():
    counts = np.zeros(4)
    for seed in range(4000):
        counts[list(sampler([3.0, 1.0, 0.0, 0.0], size=1, seed=seed))[0]] += 1
    # The floor is a tenth of the mean, 0.1: chances 3, 1, .1, .1 of 4.2; four standard errors of 4,000 draws.
    expected = np.array([3.0, 1.0, 0.1, 0.1]) / 4.2
    assert (np.abs(counts / 4000 - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_a_batch_holds_distinct_rows_repeated_as_trl_repeats_them():
    rows = list(sampler([1.0] * 5, size=2, mini_repeat_count=3, repeat_count=2))
    assert len(rows) == len(sampler([1.0] * 5, size=2, mini_repeat_count=3, repeat_count=2)) == 24
    for batch in (rows[:12], rows[12:]):
        a, b = batch[0], batch[3]
        assert a != b and batch == [a, a, a, b, b, b] * 2


def test_what_a_batch_showed_decides_the_one_after_the_next_and_a_copy_goes_on_alike():
    first, copy = sampler([1.0] * 40), sampler([1.0] * 40)
    before = list(first)
    for _ in range(3):
        first.measured([7, 8], [1e9, 1e9])
    after = list(first)
    assert after[2 * 4 : 2 * 5] != before[2 * 4 : 2 * 5] and set(after[2 * 4 : 2 * 5]) == {7, 8}
    copy.load(first.state())
    assert list(copy)[2 * 3 :] == after[2 * 3 :]


def test_training_on_prompts_by_signal_reaches_the_same_target(world, tmp_path):
    changes = {"group": 8, "steps": 120, "per_device_train_batch_size": 8 * SIZE // 2}
    trainer = DISATrainer(
        anchor=world.anchor(), args=DISAConfig(**settings(tmp_path, prompts="signal", **changes)), **world.online()
    )
    start = trainer.log_z.signal
    assert start.keys() == set(IDS)
    before = world.kl_to_target(trainer.model).mean()
    trainer.train()
    assert before > 0.25 and world.kl_to_target(trainer.model).max() < 0.02
    # Near the target all residuals are near log Z's error, 0, and the sampler has seen it of every prompt.
    assert trainer._sampler.signal.max() < 0.5 * max(start.values())


def test_signal_is_refused_without_an_anchor_s_intervals(world, tmp_path):
    with pytest.raises(DisaError, match="needs the anchor of DISA"):
        vargrad(world, tmp_path, prompts="signal")
    with pytest.raises(DisaError, match="prompts='hard', expected 'uniform' or 'signal'"):
        DISAConfig(**settings(tmp_path, prompts="hard"))
