"""Strategies from pairs, agreement with labels, and lexical measures, against closed forms.

Tolerance 1e-12 unless stated otherwise: float64 sums of a few terms of order one.
"""

import itertools
import math

import numpy as np
import pytest

from disa.evaluation.judge import StrategyVerdict
from disa.evaluation.judge_agreement import judge_agreement
from disa.evaluation.lexical import self_bleu, vendi_score
from disa.evaluation.strategies import strategy_metrics

EXACT = {"rel": 0, "abs": 1e-12}
SAME, DIFFERENT = StrategyVerdict("same", "asked"), StrategyVerdict("different", "asked")


def verdicts(strategies):
    return [SAME if a == b else DIFFERENT for a, b in itertools.combinations(strategies, 2)]


def test_simpson_is_unbiased_over_every_possible_draw():
    p = {"a": 0.5, "b": 0.3, "c": 0.2}
    expected = 1 - sum(x * x for x in p.values())
    for n in (2, 3, 4):
        mean = 0.0
        for draws in itertools.product(p, repeat=n):
            chance = math.prod(p[s] for s in draws)
            mean += chance * strategy_metrics(verdicts(draws), n)["simpson"]
        assert mean == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("strategies", ["aaaa", "aabb", "abcd", "aaab"])
def test_effective_strategies_is_the_inverse_sum_of_squared_frequencies(strategies):
    f = [strategies.count(s) / 4 for s in set(strategies)]
    found = strategy_metrics(verdicts(strategies), 4)["effective_strategies"]
    assert found == pytest.approx(1 / sum(x * x for x in f), **EXACT)


def test_abstentions_are_left_out_counted_and_bounded():
    found = strategy_metrics([SAME, DIFFERENT, StrategyVerdict(None, "order")], 3)
    assert found["simpson"] == 1 / 2
    assert found["abstained"] == pytest.approx(1 / 3, **EXACT)
    assert (found["simpson_low"], found["simpson_high"]) == (1 / 3, 2 / 3)
    assert "simpson" not in strategy_metrics([StrategyVerdict(None, "unclear")], 2)
    assert strategy_metrics([], 1) == {}


def test_kappa_of_a_table_by_hand():
    # Observed agreement 0.7, expected 0.5, kappa 0.4.
    labels = ["same"] * 25 + ["different"] * 25
    judged = [SAME] * 20 + [DIFFERENT] * 5 + [SAME] * 10 + [DIFFERENT] * 15
    found = judge_agreement(labels, judged)
    assert found.accuracy == pytest.approx(0.7, **EXACT)
    assert found.kappa == pytest.approx(0.4, **EXACT)
    assert found.confusion == {"same/same": 20, "same/different": 5, "different/same": 10, "different/different": 15}
    # (p - 0.5) / 0.5 of both ends, the margins held.
    assert found.kappa_interval == pytest.approx([2 * x - 1 for x in found.accuracy_interval], **EXACT)


def test_agreement_leaves_abstentions_out_and_counts_them_by_reason():
    judged = [
        SAME,
        StrategyVerdict(None, "order"),
        DIFFERENT,
        StrategyVerdict(None, "unreadable"),
        StrategyVerdict(None, "order"),
    ]
    found = judge_agreement(["same", "same", "different", "same", "different"], judged)
    assert found.abstained == {"order": 2, "unreadable": 1}
    assert (found.pairs, found.accuracy, found.kappa) == (5, 1.0, 1.0)
    # Two right of two say little: the interval must not shrink to a point.
    assert found.accuracy_interval[0] < 0.5
    assert found.kappa_interval[0] < 0


def test_agreement_without_verdicts_or_with_one_label_has_no_kappa():
    assert judge_agreement(["same"], [StrategyVerdict(None, "order")]).accuracy is None
    assert judge_agreement(["same", "same"], [SAME, SAME]).kappa is None


def test_self_bleu_is_1_for_equal_texts_and_0_without_a_shared_token():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0, **EXACT)
    assert self_bleu(["a b c d e f", "u v w x y z"]) == 0.0
    assert self_bleu(["one"]) is None
    assert self_bleu(["", "a"]) is None


def test_self_bleu_by_hand():
    # "a b c d" against "a b c x": precisions 3/4, (2+1)/(3+1), (1+1)/(2+1), (0+1)/(1+1); both texts alike.
    expected = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b c d", "a b c x"]) == pytest.approx(expected, **EXACT)


def test_self_bleu_penalises_a_text_shorter_than_its_reference():
    # "a b" is all in "a b c d": precisions 1, 1, and (0+1)/(0+1) twice; penalty exp(1 - 4/2).
    # The other: 2/4, (1+1)/(3+1), (0+1)/(2+1), (0+1)/(1+1), no penalty.
    expected = (math.exp(-1) + (1 / 2 * 1 / 2 * 1 / 3 * 1 / 2) ** 0.25) / 2
    assert self_bleu(["a b", "a b c d"]) == pytest.approx(expected, **EXACT)


def test_vendi_counts_texts_that_share_nothing():
    assert vendi_score(["a b", "c d", "e f"]) == pytest.approx(3.0, abs=1e-9)  # eigenvalues to 1e-15, times log
    assert vendi_score(["a b"] * 4) == pytest.approx(1.0, abs=1e-6)  # x log x is steep at the rounding of 0
    assert vendi_score(["a b", "a b", "c d"]) == pytest.approx(
        math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))), abs=1e-6
    )
    assert vendi_score([""]) is None


def test_vendi_of_two_texts_follows_from_their_cosine():
    # Counts over a, b, "a b" and a, c, "a c": cosine 1/3, eigenvalues of K/2 are (1 +- 1/3) / 2.
    eigenvalues = np.array([2 / 3, 1 / 3])
    expected = np.exp(-np.sum(eigenvalues * np.log(eigenvalues)))
    assert vendi_score(["a b", "a c"]) == pytest.approx(expected, abs=1e-9)
