"""Summaries and paired tests of several models.

Tolerance 1e-12 unless stated otherwise: sums of a few float64 terms of order one.
"""

import itertools
import math

import numpy as np
import pytest

from disa.errors import DisaError
from disa.evaluation import paired_tests as module
from disa.evaluation.metrics import AVERAGE
from disa.evaluation.paired_tests import compare_evaluations, sign_flip_test

EXACT = {"rel": 0, "abs": 1e-12}


def values(**models):
    """Values of one metric: model -> {task: {problem: value}}."""
    return {m: {t: {"mean@4": v} for t, v in tasks.items()} for m, tasks in models.items()}


@pytest.mark.parametrize(
    "groups", [[[0.5, -0.25, 0.25, 0.0, 0.75]], [[0.5, -0.25, -0.5, 0.25, -0.5], [0.25, 1.0]], [[0.1, 0.2, 0.3]]]
)
def test_the_paired_test_counts_every_pattern_of_signs(groups):
    def statistic(signed):
        return np.mean([np.mean(g) for g in signed])

    observed = abs(statistic(groups))
    size = sum(map(len, groups))
    extreme = 0
    for signs in itertools.product([-1, 1], repeat=size):
        rest = iter(signs)
        extreme += abs(statistic([[next(rest) * d for d in g] for g in groups])) >= observed - 1e-12
    assert sign_flip_test(groups) == pytest.approx(extreme / 2**size, **EXACT)


def test_models_without_a_difference_have_p_1():
    assert sign_flip_test([[0.0, 0.0, 0.0]]) == 1.0
    assert sign_flip_test([[0.0, 0.5]]) == 1.0


def test_the_sampled_test_agrees_with_the_binomial_sign_test():
    # 30 differences of one size: the number of positive ones is binomial(30, 1/2) under the null hypothesis.
    differences = [[0.25] * 21 + [-0.25] * 9]
    exact = 2 * sum(math.comb(30, k) for k in range(21, 31)) / 2**30
    # 20,000 patterns: standard error sqrt(p (1 - p) / 20000) = 0.0014 at p = 0.043, four of them.
    assert sign_flip_test(differences) == pytest.approx(exact, abs=0.006)


def test_p_values_are_uniform_where_models_do_not_differ():
    rng = np.random.default_rng(0)
    # Continuous differences of 10 problems: 1024 patterns, so p takes multiples of 2/1024.
    p = [sign_flip_test([rng.normal(size=10)]) for _ in range(400)]
    # Binomial error of a share of 0.2 among 400: 0.02, three of them.
    assert np.mean(np.array(p) <= 0.2) == pytest.approx(0.2, abs=0.06)


def test_holm_multiplies_the_smallest_first_and_never_decreases():
    found = module._holm(
        [module.EvaluationComparison("t", "m", str(p), "b", None, p, p) for p in (0.04, 0.01, 0.03)],
    )
    # 0.01 * 3, then 0.03 * 2, then max(0.06, 0.04 * 1).
    assert [c.p_holm for c in found] == pytest.approx([0.06, 0.03, 0.06], **EXACT)


def test_comparisons_are_paired_by_problem_and_adjusted_over_models():
    base = {f"p{i}": 0.5 for i in range(8)}
    better = {p: v + 0.25 for p, v in base.items()}
    better["unshared"] = 0.0
    found = compare_evaluations(values(base={"t": base}, x={"t": better}, y={"t": base}), "base", ["mean@4"])
    x, y = found
    assert (x.model, x.difference.value, x.difference.n_prompts) == ("x", 0.25, 8)
    assert x.difference.se == pytest.approx(0.0, **EXACT)
    # All eight differences point one way: 2 of 2^8 patterns are as extreme; twice that for two models.
    assert x.p_value == pytest.approx(2 / 256, **EXACT)
    assert x.p_holm == pytest.approx(4 / 256, **EXACT)
    assert (y.p_value, y.p_holm) == (1.0, 1.0)


def test_the_difference_of_averages_weighs_tasks_alike():
    tasks = {"large": {f"p{i}": float(i % 2) for i in range(100)}, "small": {"q0": 1.0, "q1": 0.5}}
    found = compare_evaluations(
        values(a=tasks, b={t: dict.fromkeys(v, 0.0) for t, v in tasks.items()}), "b", ["mean@4"]
    )
    assert {c.task: c.difference.value for c in found}[AVERAGE] == pytest.approx(0.625, **EXACT)


def test_an_unknown_baseline_is_refused():
    with pytest.raises(DisaError, match="'z'.*choose one of a"):
        compare_evaluations(values(a={"t": {"p": 1.0}}), "z", ["mean@4"])
