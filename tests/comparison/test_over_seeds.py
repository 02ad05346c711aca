"""Means, intervals and the best mode, from policies whose numbers are made by hand."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from disa.comparison.budget import Budget
from disa.comparison.grid import best_point
from disa.comparison.results import ComparisonResults, MethodResult, SearchedPoint, best_mode, over_seeds
from disa.comparison.tables import (
    budget_rows,
    comparison_tables,
    difference_rows,
    interval_text,
    method_rows,
    rate_notes,
    seeds_text,
    verdict_lines,
)
from disa.errors import DisaError

PROMPTS = [f"p{i}" for i in range(4)]
BUDGET = Budget(steps=10, prompts_per_step=2, drawn_per_step=16, stored_per_step=0, read=40)
METRICS = ("mean@8", "effective_modes", "kl_to_target")


def policy(mean, modes, kl, *, spread=0.0):
    """One seed's values; prompts differ by ``spread``, which a difference paired by prompt does not see."""
    offsets = spread * np.array([-3.0, -1.0, 1.0, 3.0])
    split = {
        metric: dict(zip(PROMPTS, (value + offsets).tolist(), strict=True))
        for metric, value in zip(METRICS, (mean, modes, kl), strict=True)
    }
    return {"heldout": split, "validation": split}


def method(name, *seeds, budget=BUDGET, logs=None):
    values = {i: policy(*seed) for i, seed in enumerate(seeds)}
    logs = logs or {i: [{"step": 10, "wall_time": 3.0}] for i in values}
    return MethodResult(name, {}, [], budget, 1, values, logs)


def comparison(*methods, criterion="mean@8"):
    best = best_mode(methods, criterion)
    return ComparisonResults(list(methods), policy(0.1, 1.0, 0.5), best, criterion, "completions", 0)


def test_the_interval_is_student_s():
    x = [0.31, 0.42, 0.36, 0.47, 0.40]
    found = over_seeds(x)
    expected = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.se == pytest.approx(stats.sem(x), abs=1e-15)


def test_a_paired_interval_is_that_of_the_paired_t_test():
    first = method("disa", (0.5, 2, 0.1), (0.6, 2, 0.1), (0.4, 2, 0.1))
    second = method("grpo", (0.4, 1, 0.9), (0.55, 1, 0.9), (0.2, 1, 0.9))
    found = comparison(first, second).difference("disa", "grpo", "heldout", "mean@8")
    expected = stats.ttest_rel([0.5, 0.6, 0.4], [0.4, 0.55, 0.2]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_one_seed_has_no_error_and_no_interval():
    found = over_seeds([0.25])
    assert (found.value, found.seeds) == (0.25, 1)
    assert math.isnan(found.se) and math.isnan(found.low) and math.isnan(found.high)
    assert (seeds_text(found), interval_text(found)) == ("0.250", "+0.250")


def test_only_seeds_that_both_have_are_paired():
    first, second = method("disa", (0.5, 2, 0.1), (0.7, 2, 0.1)), method("grpo", (0.4, 1, 0.9))
    found = comparison(first, second).difference("disa", "grpo", "heldout", "mean@8")
    assert (found.seeds, found.value) == (1, pytest.approx(0.1, abs=1e-12))


def test_prompts_differing_in_difficulty_leave_a_paired_difference_alone():
    plain = comparison(method("disa", (0.5, 2, 0.1), (0.6, 2, 0.1)), method("grpo", (0.4, 1, 1), (0.4, 1, 1)))
    spread = dataclasses.replace(
        plain,
        methods=[
            dataclasses.replace(m, values={s: policy(v, 1, 1, spread=0.05) for s, v in enumerate(means)})
            for m, means in zip(plain.methods, ([0.5, 0.6], [0.4, 0.4]), strict=True)
        ],
    )
    first, second = (c.difference("disa", "grpo", "heldout", "mean@8") for c in (plain, spread))
    # Equal up to the rounding of sums of four numbers below 1.
    assert (first.value, first.se) == pytest.approx((second.value, second.se), abs=1e-12)


def test_the_best_mode_is_chosen_on_validation_prompts_whatever_held_out_ones_say():
    disa, forward = method("disa", (0.3, 2, 0.1)), method("disa_forward", (0.5, 2, 0.4))
    disa.values[0]["heldout"] = policy(0.9, 3, 0.01)["heldout"]
    assert best_mode([disa, forward], "mean@8") == "disa_forward"
    assert best_mode([disa, forward], "kl_to_target") == "disa"
    # Other methods never stand for DISA, however good.
    assert best_mode([method("grpo", (0.9, 3, 0.0))], "mean@8") is None


@pytest.mark.parametrize("lower", [True, False])
def test_a_policy_that_diverged_is_never_the_best(lower):
    scores = {"a": math.nan, "b": 0.2, "c": 0.1, "d": 0.1, "e": math.nan}
    assert best_point(scores, "kl_to_target" if lower else "mean@8") == ("c" if lower else "b")
    diverged, other = method("disa", (0.3, 2, math.nan)), method("disa_forward", (0.5, 2, 0.4))
    assert best_mode([diverged, other], "kl_to_target") == "disa_forward"


def test_the_scores_that_chose_the_best_mode_are_printed():
    modes = method("disa", (0.3, 2, 0.1), (0.4, 2, 0.1)), method("disa_both", (0.6, 2, 0.4))
    modes[0].values[0]["heldout"] = policy(0.9, 3, 0.01)["heldout"]
    (caption,) = [t.caption for t in comparison_tables(comparison(*modes, *OTHERS)) if t.title == "Differences"]
    assert "by mean@8 on validation prompts, mean over seeds: disa 0.350 ± 0.050, disa_both 0.600. " in caption


def searched(name, chosen, *rates):
    candidates = [SearchedPoint({"learning_rate": str(rate)}, rate, 0.5) for rate in rates]
    return dataclasses.replace(
        method(name, (0.5, 2, 0.1)), search=candidates, point={"learning_rate": str(chosen)} if candidates else {}
    )


def test_a_learning_rate_at_an_end_of_its_search_is_pointed_out():
    found = comparison(
        searched("grpo", 0.3, 0.1, 0.3, 0.2),
        searched("gspo", 0.2, 0.1, 0.2),
        searched("sft", 0.1, 0.1, 0.2, 0.3),
        searched("vargrad", 0.2, 0.1, 0.2, 0.3),
        searched("disa_both", 0.2, 0.2, 0.2),
        searched("disa", None),
    )
    assert rate_notes(found) == [
        "The largest learning rate tried was chosen for grpo, gspo: a larger one may be better.",
        "The smallest learning rate tried was chosen for sft: a smaller one may be better.",
        "A single learning rate was tried for disa_both: another one may be better.",
    ]


OTHERS = [
    method("flowrl", (0.50, 1.5, 0.30)),
    method("a2po", (0.50, 1.5, 0.25)),
    method("grpo", (0.55, 1.0, 2.0)),
    method("sft", (0.45, 1.5, 0.4)),
]


def test_the_best_mode_carries_a_mark_and_every_other_one_a_difference():
    results = comparison(method("disa", (0.5, 2, 0.1)), method("disa_both", (0.6, 2, 0.1)), *OTHERS)
    assert [row[0] for row in method_rows(results)[1:]] == [
        "reference",
        "disa",
        "disa_both *",
        "flowrl",
        "a2po",
        "grpo",
        "sft",
    ]
    rows = difference_rows(results)
    assert rows[0][0] == "minus disa_both"
    assert {row[0]: row[1] for row in rows[1:]}["grpo"] == "-0.050"


def test_without_countable_modes_there_is_no_column_for_them():
    results = comparison(method("disa", (0.5, 2, 0.1)), *OTHERS)
    for values in (results.reference, *(m.values[0] for m in results.methods)):
        values["heldout"].pop("effective_modes", None)
    assert method_rows(results)[0] == ["method", "seeds", "Mean@8 ↑", "KL to target (nats) ↓"]


def undefined(name, metric, *seeds):
    """A method whose policies lack a metric, as every sample without a verdict leaves it."""
    found = method(name, *seeds)
    for values in found.values.values():
        for split in values.values():
            split.pop(metric, None)
    return found


def test_a_criterion_that_no_validation_prompt_defines_is_named():
    with pytest.raises(DisaError, match="no validation prompt of disa has enough samples with a verdict for mean@8"):
        comparison(undefined("disa", "mean@8", (0.5, 2, 0.1)))


def test_an_interval_without_0_is_marked_and_stands_in_the_verdict():
    disa = method("disa", (0.5, 2, 0.1), (0.6, 2, 0.1), (0.4, 2, 0.1))
    grpo = method("grpo", (0.4, 1, 0.9), (0.51, 1, 0.9), (0.29, 1, 0.9))
    results = comparison(disa, grpo)
    found = results.difference("grpo", "disa", "heldout", "mean@8")
    assert found.high < 0 and interval_text(found).endswith("] *")
    first, second = verdict_lines(results)
    assert first == "The best of DISA's modes is disa, chosen on validation prompts."
    assert second.startswith(f"grpo minus disa: Mean@8 ↑ {interval_text(found)}; ")
    assert interval_text(over_seeds([-0.1, 0.2])) == "+0.050 [-1.856, +1.956]"


def test_the_budget_counts_what_was_drawn_with_and_without_the_anchor_and_every_use_of_it():
    once, again = method("grpo", (0.3, 1.0, 2.0)), dataclasses.replace(method("disa", (0.3, 1.0, 2.0)), uses=4)
    rows = budget_rows(comparison(once, again))
    assert rows[0][1:3] == ["batches", "steps per batch"]
    found = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [row["steps per batch"] for row in found] == ["1", "4"]
    # 10 batches of 16; 40 trajectories were read.
    assert {(row["drawn in training"], row["completions"]) for row in found} == {("160", "200")}
    assert [row["sequences learned from"] for row in found] == ["160", "640"]
