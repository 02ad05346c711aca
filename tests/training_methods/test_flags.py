"""What happens to prompts whose log Z is flagged."""

from types import SimpleNamespace

import numpy as np
import pytest

from disa.errors import DisaError
from disa.training.flags import POLICIES, flag_plan, flagged_prompts, require_frozen_log_z, with_frozen_log_z


class Anchor:
    """Flags of three prompts; the rest of an anchor is not asked for."""

    estimates = {
        "good": SimpleNamespace(flags=[]),
        "gated": SimpleNamespace(flags=["gated"]),
        "bad": SimpleNamespace(flags=["gated", "wide_interval"]),
    }

    def log_z(self, prompt_ids):
        assert set(prompt_ids) <= set(self.estimates)
        return np.zeros(len(prompt_ids))


PROMPTS = ["bad", "good", "gated"]


def test_a_prompt_is_flagged_by_any_flag_but_that_of_the_gate():
    assert flagged_prompts(Anchor(), PROMPTS) == ["bad"]


@pytest.mark.parametrize(("policy", "source"), [("train", "anchor"), ("group", "group"), ("skip", "skip")])
def test_each_policy_treats_flagged_prompts_alone(policy, source):
    plan = flag_plan(Anchor(), PROMPTS, policy)
    assert plan.source == {"bad": source, "good": "anchor", "gated": "anchor"}
    assert plan.count(source) == (3 if policy == "train" else 1)


def test_refusing_names_the_prompts_and_what_would_help():
    with pytest.raises(DisaError, match=r"1 of 3 prompts are flagged: bad.*proposals.resample"):
        flag_plan(Anchor(), PROMPTS, "refuse")
    assert flag_plan(Anchor(), ["good", "gated"], "refuse").count("anchor") == 2


@pytest.mark.parametrize(
    ("prompts", "step", "found"),
    [
        (["bad"], 1, "1 of 1 prompts are flagged, which leaves 0 to train on, expected at least the 1 of a step"),
        (PROMPTS, 3, "1 of 3 prompts are flagged, which leaves 2 to train on, expected at least the 3 of a step"),
    ],
)
def test_skipping_must_leave_the_prompts_of_a_step(prompts, step, found):
    with pytest.raises(DisaError, match=found):
        flag_plan(Anchor(), prompts, "skip", prompts_per_step=step)
    plan = flag_plan(Anchor(), PROMPTS, "skip", prompts_per_step=2)
    assert plan.count("anchor") == 2


@pytest.mark.parametrize(("policy", "kept"), [("train", PROMPTS), ("group", PROMPTS[1:]), ("skip", PROMPTS[1:])])
def test_stored_trajectories_are_those_of_prompts_whose_frozen_log_z_is_used(policy, kept):
    plan, rows = flag_plan(Anchor(), PROMPTS, policy), [SimpleNamespace(prompt_id=p) for p in PROMPTS]
    assert [row.prompt_id for row in with_frozen_log_z(rows, plan)] == kept
    require_frozen_log_z([*kept, "no training prompt"], plan)
    if policy != "train":
        with pytest.raises(DisaError, match=f"of 1 flagged prompts, bad first, .* flagged='{policy}' does not use"):
            require_frozen_log_z(PROMPTS, plan)


def test_flagged_prompts_alone_leave_the_forward_projection_nothing():
    with pytest.raises(DisaError, match="all 1 prompts are flagged, which leaves none of 2 stored.*Fix: "):
        with_frozen_log_z([SimpleNamespace(prompt_id="bad")] * 2, flag_plan(Anchor(), ["bad"], "group"))


def test_the_policies_are_those_of_the_configuration():
    assert POLICIES == ("train", "group", "skip", "refuse")
