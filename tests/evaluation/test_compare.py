"""Summaries and paired tests of several models.

Tolerance 1e-12 unless stated otherwise: sums of a few float64 terms of order one.
"""

import itertools
import math

import numpy as np
import pytest

from disa.errors import DisaError
from disa.evaluation import compare as module
from disa.evaluation.compare import AVERAGE, compare, problem_values, sign_flip_test, summarise_tasks
from disa.evaluation.samples import JudgedSample, ProblemScore, problem_scores

EXACT = {"rel": 0, "abs": 1e-12}


def score(prompt_id, correct, *, model="a", task="t", samples=4, undecided=0):
    return ProblemScore(model, task, prompt_id, samples, undecided, correct, 0, None, [], None)


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
        [module.Comparison("t", "m", str(p), "b", None, p, p) for p in (0.04, 0.01, 0.03)],
    )
    # 0.01 * 3, then 0.03 * 2, then max(0.06, 0.04 * 1).
    assert [c.p_holm for c in found] == pytest.approx([0.06, 0.03, 0.06], **EXACT)


def test_comparisons_are_paired_by_problem_and_adjusted_over_models():
    base = {f"p{i}": 0.5 for i in range(8)}
    better = {p: v + 0.25 for p, v in base.items()}
    better["unshared"] = 0.0
    found = compare(values(base={"t": base}, x={"t": better}, y={"t": base}), "base", ["mean@4"])
    x, y = found
    assert (x.model, x.difference.value, x.difference.n_prompts) == ("x", 0.25, 8)
    assert x.difference.se == pytest.approx(0.0, **EXACT)
    # All eight differences point one way: 2 of 2^8 patterns are as extreme; twice that for two models.
    assert x.p_value == pytest.approx(2 / 256, **EXACT)
    assert x.p_holm == pytest.approx(4 / 256, **EXACT)
    assert (y.p_value, y.p_holm) == (1.0, 1.0)


def test_the_average_weighs_tasks_alike():
    tasks = {"large": {f"p{i}": float(i % 2) for i in range(100)}, "small": {"q0": 1.0, "q1": 0.5}}
    average = summarise_tasks(values(a=tasks))["a"][AVERAGE]["mean@4"]
    assert average.value == pytest.approx((0.5 + 0.75) / 2, **EXACT)
    parts = [np.std(list(v.values()), ddof=1) / math.sqrt(len(v)) for v in tasks.values()]
    assert average.se == pytest.approx(math.hypot(*parts) / 2, **EXACT)
    found = compare(values(a=tasks, b={t: dict.fromkeys(v, 0.0) for t, v in tasks.items()}), "b", ["mean@4"])
    assert {c.task: c.difference.value for c in found}[AVERAGE] == pytest.approx(0.625, **EXACT)


def test_an_unknown_baseline_is_refused():
    with pytest.raises(DisaError, match="'z'.*choose one of a"):
        compare(values(a={"t": {"p": 1.0}}), "z", ["mean@4"])


def test_undecided_samples_are_neither_right_nor_wrong_and_bound_what_is_unknown():
    metrics = score("p", correct=2, samples=6, undecided=2).metrics([1, 4, 6])
    assert metrics["mean@4"] == 2 / 4
    assert metrics["pass@4"] == 1.0
    assert "pass@6" not in metrics  # four verdicts say nothing exact about six
    assert (metrics["mean@6_low"], metrics["mean@6_high"]) == (2 / 6, 4 / 6)
    assert metrics["pass@1_low"] <= metrics["pass@1"] <= metrics["pass@1_high"]
    assert metrics["undecided"] == 2 / 6


def test_bounds_contain_the_metric_under_every_completion_of_the_verdicts():
    for extra in range(3):
        full = score("p", correct=2 + extra, samples=6).metrics([2])
        partial = score("p", correct=2, samples=6, undecided=2).metrics([2])
        assert partial["pass@2_low"] <= full["pass@2"] <= partial["pass@2_high"]
    assert partial["pass@2_high"] == full["pass@2"]


def test_bounds_are_shown_only_where_verdicts_are_missing():
    shown = problem_values([score("p", 2), score("q", 1, task="u", undecided=1)], [1])["a"]
    assert "mean@1_low" not in shown["t"]
    assert "mean@1_low" in shown["u"]


def test_scores_count_samples_by_problem():
    rows = [
        JudgedSample("a", "t", "p", 0, "x", 5, False, 1.0, "m1"),
        JudgedSample("a", "t", "p", 1, "y", 7, True, 0.5, None),
        JudgedSample("a", "t", "p", 2, "z", None, False, None, None),
        JudgedSample("a", "t", "p", 3, "w", None, False, 1.0, "m1"),
    ]
    (found,) = problem_scores(rows, {"p": 4})
    assert found == ProblemScore("a", "t", "p", 4, 1, 2, 1, 6.0, ["m1", "m1"], 4)
    metrics = found.metrics([2])
    assert metrics["coverage"] == 1 / 4
    assert metrics["effective_modes"] == 1.0
    # Pairs of the three with a verdict: (m1, wrong), (m1, m1), (wrong, m1), one mode each.
    assert metrics["distinct_modes@2"] == pytest.approx(1.0, **EXACT)
