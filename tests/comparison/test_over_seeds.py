"""Means, intervals, the best mode and the goals, from policies whose numbers are made by hand."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from disa.comparison.blocks import blocks
from disa.comparison.budget import Budget
from disa.comparison.choice import best_of
from disa.comparison.goals import check_goals
from disa.comparison.results import Candidate, ComparisonResults, MethodResult, best_mode, over_seeds
from disa.comparison.tables import difference_rows, interval_text, rate_notes, results_rows, seeds_text

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
    return MethodResult(name, {}, [], budget, values, logs)


def comparison(*methods, criterion="mean@8"):
    lower = criterion == "kl_to_target"
    best = best_mode(methods, criterion, lower_is_better=lower)
    return ComparisonResults(list(methods), policy(0.1, 1.0, 0.5), best, criterion, lower, "completions", 0)


def met(*methods, **settings):
    """Verdicts by the first words of each claim."""
    return [goal.met for goal in check_goals(comparison(*methods, **settings))]


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
    assert best_mode([disa, forward], "mean@8", lower_is_better=False) == "disa_forward"
    assert best_mode([disa, forward], "kl_to_target", lower_is_better=True) == "disa"
    # Other methods never stand for DISA, however good.
    assert best_mode([method("grpo", (0.9, 3, 0.0))], "mean@8", lower_is_better=False) is None


@pytest.mark.parametrize("lower", [True, False])
def test_a_policy_that_diverged_is_never_the_best(lower):
    scores = {"a": math.nan, "b": 0.2, "c": 0.1, "d": 0.1, "e": math.nan}
    assert best_of(scores, lower_is_better=lower) == ("c" if lower else "b")
    diverged, other = method("disa", (0.3, 2, math.nan)), method("disa_forward", (0.5, 2, 0.4))
    assert best_mode([diverged, other], "kl_to_target", lower_is_better=True) == "disa_forward"


def test_the_scores_that_chose_the_best_mode_are_printed():
    modes = method("disa", (0.3, 2, 0.1), (0.4, 2, 0.1)), method("disa_both", (0.6, 2, 0.4))
    modes[0].values[0]["heldout"] = policy(0.9, 3, 0.01)["heldout"]
    (reading,) = [block.reading for block in blocks(comparison(*modes, *OTHERS)) if block.title == "Differences"]
    assert "by mean@8 on validation prompts, mean over seeds: disa 0.350 ± 0.050, disa_both 0.600. " in reading


def searched(name, chosen, *rates):
    candidates = [Candidate({"learning_rate": str(rate)}, rate, 0.5) for rate in rates]
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


def test_goals_are_met_at_their_bounds_and_missed_below_them():
    assert met(method("disa", (0.50, 2.0, 0.2)), *OTHERS) == [True] * 5
    below = 1e-6
    assert met(method("disa", (0.50 - below, 2.0, 0.2)), *OTHERS) == [False, False, True, True, True]
    assert met(method("disa", (0.50, 2.0 - below, 0.2)), *OTHERS) == [True, True, False, True, True]
    assert met(method("disa", (0.50, 2.0, 0.25)), *OTHERS) == [True, True, True, True, False]
    # 0.9 x 0.55 = 0.495 of GRPO's quality is asked for, however many modes there are.
    assert met(method("disa", (0.49, 9.0, 0.2)), *OTHERS)[2] is False
    # Above the supervised policy, not level with it.
    assert met(method("disa", (0.45, 2.0, 0.2)), *OTHERS)[3] is False


def test_the_nearest_method_and_the_place_of_the_best_mode_are_named():
    *_, goal = check_goals(comparison(method("disa", (0.5, 2.0, 0.35)), *OTHERS))
    # a2po 0.25, flowrl 0.30, disa 0.35, sft 0.4, grpo 2.0
    assert (goal.met, goal.numbers) == (False, "a2po has the lowest, disa is 3 of 5: disa 0.350, a2po 0.250, +0.100")
    diverged = method("gspo", (0.5, 2.0, math.nan))
    *_, goal = check_goals(comparison(method("disa", (0.5, 2.0, 0.2)), diverged, *OTHERS))
    assert goal.met and goal.numbers.startswith("next is a2po: ")


def test_every_supervised_method_that_was_compared_has_its_goal():
    lora = method("lora_sft", (0.6, 1.5, 0.4))
    goals = check_goals(comparison(method("disa", (0.5, 2.0, 0.2)), lora, *OTHERS))
    assert [(g.claim.split("'s")[0], g.met) for g in goals[3:5]] == [
        ("Mean@8 above lora_sft", False),
        ("Mean@8 above sft", True),
    ]


def test_a_goal_against_a_method_that_was_not_compared_is_open():
    assert met(method("disa", (0.5, 2.0, 0.2))) == [None] * 4
    assert met(*OTHERS) == [None] * 5


def test_the_best_mode_carries_a_mark_and_every_other_one_a_difference():
    results = comparison(method("disa", (0.5, 2, 0.1)), method("disa_both", (0.6, 2, 0.1)), *OTHERS)
    assert [row[0] for row in results_rows(results)[1:]] == [
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
    assert results_rows(results)[0] == ["method", "seeds", "Mean@8 ↑", "KL to target (nats) ↓"]
