"""Metrics against enumeration and closed forms.

Tolerance 1e-12 throughout: sums of at most some hundred float64 terms of order one.
"""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from disa.errors import DisaError
from disa.evaluation import metrics
from disa.runs.records import EvaluationRecord

EXACT = {"rel": 0, "abs": 1e-12}


def record(prompt_id, draw, mode, *, model="disa", split="heldout", log_pi=-2.0, log_ref=-3.0, reward=None):
    reward = float(mode is not None) if reward is None else reward
    return EvaluationRecord(model, "countdown", prompt_id, split, draw, "text", 5, False, reward, mode, log_pi, log_ref)


def summarise(rows, n_solutions, ks, **how):
    return metrics.summarise_metrics(metrics.per_prompt(rows, n_solutions, ks, **how))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_and_mean_at_k_are_averages_over_every_choice_of_k_samples(k):
    correct = [True, False, False, True, False]
    choices = list(itertools.combinations(correct, k))
    assert metrics.pass_at_k(correct, k) == pytest.approx(np.mean([any(c) for c in choices]), **EXACT)
    rows = [record("p", d, "a" if c else None) for d, c in enumerate(correct)]
    values = metrics.prompt_metrics(rows, [k], n_solutions=4, has_modes=True)
    assert values[f"mean@{k}"] == pytest.approx(np.mean([np.mean(c) for c in choices]), **EXACT)


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_distinct_modes_at_k_is_the_average_over_every_choice_of_k_samples(k):
    modes = ["a", "a", None, "b", "c", None]
    counts = [len(set(c) - {None}) for c in itertools.combinations(modes, k)]
    assert metrics.distinct_modes_at_k(modes, k) == pytest.approx(np.mean(counts), **EXACT)


def test_distinct_modes_and_pass_at_k_are_unbiased_over_every_possible_draw():
    probabilities = {"a": 0.5, "b": 0.2, None: 0.3}
    n, k = 4, 2
    expected_modes = sum(1 - (1 - p) ** k for m, p in probabilities.items() if m)
    found_modes = found_pass = 0.0
    for draws in itertools.product(probabilities, repeat=n):
        chance = math.prod(probabilities[m] for m in draws)
        found_modes += chance * metrics.distinct_modes_at_k(draws, k)
        found_pass += chance * metrics.pass_at_k([m is not None for m in draws], k)
    assert found_modes == pytest.approx(expected_modes, **EXACT)
    assert found_pass == pytest.approx(1 - 0.3**k, **EXACT)


def test_too_few_samples_for_k_are_refused():
    for function in (metrics.pass_at_k, metrics.distinct_modes_at_k):
        with pytest.raises(DisaError, match="k = 3 .* found 2"):
            function([None, None], 3)
    with pytest.raises(DisaError, match="k = 3 .* found 1"):
        metrics.per_prompt([record("p", 0, None)], {"p": 4}, [3])


def test_effective_modes_are_the_number_of_equally_frequent_modes_and_ignore_failures():
    assert metrics.effective_modes(["a", "b", "c", None, None]) == pytest.approx(3.0, **EXACT)
    assert metrics.effective_modes(["a", "a", "a"]) == pytest.approx(1.0, **EXACT)
    # entropy of (3/4, 1/4) = log 4 - (3/4) log 3
    assert metrics.effective_modes(["a", "a", "a", "b"]) == pytest.approx(4 / 3**0.75, **EXACT)


def test_a_prompt_without_a_correct_sample_counts_zero_effective_modes():
    rows = [record("p", d, m) for d, m in enumerate(["a", "b"])] + [record("hard", d, None) for d in range(2)]
    summary = summarise(rows, {"p": 4, "hard": 4}, [1])
    measured = summary["disa"]["heldout"]["effective_modes"]
    assert (measured.value, measured.n_prompts) == (pytest.approx(1.0, **EXACT), 2)


def test_coverage_counts_each_solution_once():
    assert metrics.solution_coverage(["a", "b", "a", None], 8) == 0.25


def test_kl_is_the_closed_form_when_the_draws_have_exactly_the_policys_frequencies():
    pi, ref, reward, beta = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5]), np.array([1.0, 0.0, 0.0]), 2.0
    z = ref @ np.exp(beta * reward)
    target = ref * np.exp(beta * reward) / z
    draws = np.array([0, 0, 1, 2])
    log_pi, log_ref = np.log(pi)[draws], np.log(ref)[draws]
    to_target = metrics.kl_to_target(log_pi, log_ref, reward[draws], log_z=math.log(z), beta=beta)
    assert to_target == pytest.approx(pi @ np.log(pi / target), **EXACT)
    assert metrics.kl_to_reference(log_pi, log_ref) == pytest.approx(pi @ np.log(pi / ref), **EXACT)


def test_standard_error_is_clustered_by_prompt_and_not_by_sample():
    rows = [record("sure", d, "a") for d in range(50)] + [record("never", d, None) for d in range(50)]
    measured = summarise(rows, {"sure": 4, "never": 4}, [8])["disa"]["heldout"]["mean@8"]
    # two prompts with values 1 and 0: sd = sqrt(1/2), se = sd / sqrt(2); 100 independent samples would give 0.05
    assert measured == metrics.MetricValue(0.5, pytest.approx(0.5, **EXACT), 2)


def test_one_prompt_has_no_standard_error_and_no_prompt_no_mean():
    assert math.isnan(metrics.clustered_mean([0.3]).se)
    with pytest.raises(ValueError, match="no prompt"):
        metrics.clustered_mean([])


def test_metrics_are_kept_only_where_they_are_defined():
    rows = [record("open", 0, None, reward=1.0), record("empty", 0, None), record("no_anchor", 0, "a")]
    exist = {"open": None, "empty": 0, "no_anchor": 3}
    values = metrics.per_prompt(rows, exist, [1], log_z={"open": 0.1, "empty": 0.2}, beta=1.0)["disa"]["heldout"]
    assert set(values["mean@1"]) == {"open", "empty", "no_anchor"}
    assert set(values["effective_modes"]) == {"empty", "no_anchor"}
    assert set(values["coverage"]) == {"no_anchor"}
    assert set(values["kl_to_target"]) == {"open", "empty"}


def test_partial_credit_is_not_correct():
    values = metrics.per_prompt([record("p", 0, None, reward=0.99)], {"p": 4}, [1])
    assert values["disa"]["heldout"]["mean@1"]["p"] == 0.0


def test_a_correct_sample_without_a_mode_is_refused_by_name():
    with pytest.raises(DisaError, match="of disa, prompt_id 'p', draw 7, field 'mode'"):
        summarise([record("p", 7, None, reward=1.0)], {"p": 4}, [1])


def test_a_record_of_an_unknown_prompt_is_refused_by_name():
    with pytest.raises(DisaError, match="prompt_id 'stray'"):
        summarise([record("stray", 0, None)], {"p": 4}, [1])


def test_models_and_splits_are_kept_apart():
    rows = [record("p", 0, "a"), record("t", 0, None, split="train"), record("p", 0, None, model="reference")]
    summary = summarise(rows, {"p": 4, "t": 4}, [1])
    assert summary["disa"]["heldout"]["mean@1"].value == 1.0
    assert summary["disa"]["train"]["mean@1"].value == 0.0
    assert summary["reference"]["heldout"]["mean@1"].value == 0.0


def test_paired_difference_removes_the_difficulty_of_prompts_and_uses_shared_prompts_only():
    easy_to_hard = {f"p{i}": i / 10 for i in range(10)}
    better = {p: v + 0.05 for p, v in easy_to_hard.items()} | {"unshared": 9.0}
    difference = metrics.paired_difference(better, easy_to_hard)
    assert difference == metrics.MetricValue(pytest.approx(0.05, **EXACT), pytest.approx(0.0, **EXACT), 10)
    assert metrics.clustered_mean(easy_to_hard.values()).se > 0.09
    with pytest.raises(DisaError, match="share no prompt"):
        metrics.paired_difference({"a": 1.0}, {"b": 1.0})


def test_an_error_of_log_z_cancels_between_two_models():
    rows = [record(p, 0, None, model=m, log_pi=lp) for m, lp in (("disa", -2.0), ("grpo", -1.5)) for p in "pq"]

    def difference(log_z):
        values = metrics.per_prompt(rows, {"p": 4, "q": 4}, [1], log_z=log_z, beta=3.0)
        models = [values[m]["heldout"]["kl_to_target"] for m in ("disa", "grpo")]
        return metrics.paired_difference(*models).value

    assert difference({"p": 0.5, "q": 1.0}) == pytest.approx(-0.5, **EXACT)
    assert difference({"p": 2.5, "q": -1.0}) == pytest.approx(-0.5, **EXACT)


def test_a_summary_survives_strict_json():
    rows = [record("p", 0, "a"), record("q", 0, None), record("t", 0, None, split="train")]
    summary = summarise(rows, {"p": 4, "q": 4, "t": 4}, [1], log_z={"p": 0.5}, beta=1.0)
    written = json.loads(json.dumps(metrics.summary_to_json(summary), allow_nan=False))
    # One prompt leaves the error undefined.
    assert written["disa"]["train"]["mean@1"] == {"value": 0.0, "se": None, "n_prompts": 1}
    assert {split: list(found) for split, found in written["disa"].items()} == {
        split: list(found) for split, found in summary["disa"].items()
    }
    # Values 1 and 0: sd 1 / sqrt(2) over sqrt(2) prompts.
    assert written["disa"]["heldout"]["mean@1"] == {"value": 0.5, "se": pytest.approx(0.5, **EXACT), "n_prompts": 2}


def undecided(prompt_id, draw):
    row = record(prompt_id, draw, None)
    return dataclasses.replace(row, reward=None)


def test_one_sample_without_a_verdict_leaves_mean_at_k_and_is_counted():
    rows = [record("p", d, "a" if d < 4 else None) for d in range(7)] + [undecided("p", 7)]
    values = metrics.per_prompt(rows, {"p": 4}, [1, 8])["disa"]["heldout"]
    assert values["mean@8"]["p"] == values["mean@1"]["p"] == 4 / 7
    assert (values["mean@8_low"]["p"], values["mean@8_high"]["p"]) == (4 / 8, 5 / 8)
    assert values["undecided"]["p"] == 1 / 8
    # Seven verdicts say nothing exact about eight samples; bounds do.
    assert "pass@8" not in values
    assert (values["pass@8_low"]["p"], values["pass@8_high"]["p"]) == (1.0, 1.0)


def test_a_prompt_without_any_verdict_has_its_distance_to_the_reference_and_its_bounds_alone():
    values = metrics.per_prompt([undecided("p", 0)], {"p": 4}, [1], log_z={"p": 1.0}, beta=1.0)["disa"]["heldout"]
    assert {name: found["p"] for name, found in values.items()} == {
        "mean@1_low": 0, "mean@1_high": 1, "pass@1_low": 0, "pass@1_high": 1, "undecided": 1, "truncated": 0,
        "tokens": 5, "kl_to_reference": 1,
    }  # fmt: skip


def test_bounds_contain_the_metric_under_every_completion_of_the_verdicts():
    partial_rows = [record("p", d, "a" if d < 2 else None) for d in range(4)] + [undecided("p", 4), undecided("p", 5)]
    partial = metrics.prompt_metrics(partial_rows, [2], n_solutions=4, has_modes=True)
    for extra in range(3):
        rows = [record("p", d, "a" if d < 2 + extra else None) for d in range(6)]
        full = metrics.prompt_metrics(rows, [2], n_solutions=4, has_modes=True)
        for name in ("mean@2", "pass@2"):
            assert partial[f"{name}_low"] <= full[name] <= partial[f"{name}_high"]


def test_bounds_are_shown_only_where_verdicts_are_missing():
    rows = [
        record("p", 0, None),
        dataclasses.replace(undecided("q", 0), split="train"),
        record("q", 1, None, split="train"),
    ]
    values = metrics.per_prompt(rows, {"p": 4, "q": 4}, [1])["disa"]
    assert "mean@1_low" not in values["heldout"]
    assert "mean@1_low" in values["train"]


def test_named_modes_that_cannot_be_counted_have_no_coverage():
    rows = [record("p", d, m) for d, m in enumerate(["a", "b", None])]
    assert "effective_modes" not in metrics.per_prompt(rows, {"p": None}, [1])["disa"]["heldout"]
    values = metrics.per_prompt(rows, {"p": None}, [1], has_modes=True)["disa"]["heldout"]
    assert values["effective_modes"]["p"] == pytest.approx(2.0, **EXACT)
    assert "coverage" not in values


def test_the_average_weighs_tasks_alike():
    tasks = {"large": {f"p{i}": float(i % 2) for i in range(100)}, "small": {"q0": 1.0, "q1": 0.5}}
    values = {"a": {task: {"mean@4": found} for task, found in tasks.items()}}
    average = metrics.summarise_metrics(values, average=True)["a"][metrics.AVERAGE]["mean@4"]
    assert average.value == pytest.approx((0.5 + 0.75) / 2, **EXACT)
    parts = [np.std(list(v.values()), ddof=1) / math.sqrt(len(v)) for v in tasks.values()]
    assert average.se == pytest.approx(math.hypot(*parts) / 2, **EXACT)
    # Splits of a run are no tasks.
    assert list(metrics.summarise_metrics(values)["a"]) == ["large", "small"]
