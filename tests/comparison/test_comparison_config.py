"""What a recipe may compare: equal searches, one target, one budget."""

import pytest

from disa.comparison.config import point_name, point_training
from disa.errors import DisaError
from disa.recipe import load_recipe
from disa.training.config import TrainingConfig


@pytest.fixture
def refusal(tiny_recipe, write_recipe):
    """The message that a comparison section is refused with."""

    def refuse(comparison):
        with pytest.raises(DisaError) as caught:
            load_recipe(write_recipe(tiny_recipe | {"comparison": comparison}))
        return str(caught.value)

    return refuse


def test_a_search_of_another_size_is_refused(refusal):
    search = {"points": [{"learning_rate": 0.1}], "points_of": {"disa": [{"learning_rate": 0.1}, {}]}}
    assert "disa has 2 candidates, the other methods have 1" in refusal({"search": search})


@pytest.mark.parametrize("setting", [{"inverse_temperature": 3.0}, {"steps": 9}, {"prompts_per_step": 9}, {"seed": 1}])
def test_a_point_cannot_change_target_or_budget(refusal, setting):
    message = refusal({"methods": ["disa"], "search": {"points": [setting]}})
    assert f"a search point of disa sets {sorted(setting)}; it may set" in message


def test_a_point_cannot_set_what_its_method_does_not_read(refusal):
    message = refusal({"methods": ["grpo"], "search": {"points": [{"offline_share": 0.5}]}})
    assert "grpo sets ['offline_share'], which the method does not read" in message


def test_a_point_s_value_is_checked_like_the_setting_itself(refusal):
    message = refusal({"methods": ["disa"], "search": {"points": [{"offline_share": 1.5}]}})
    assert "offline_share" in message and "less than 1" in message


def test_points_that_differ_in_writing_only_are_refused(refusal):
    points = [{"learning_rate": "1e-3"}, {"learning_rate": 0.001}]
    assert "two search points of disa are the same" in refusal({"methods": ["disa"], "search": {"points": points}})


def test_the_search_s_seed_is_none_of_those_compared(refusal):
    assert "search.seed 3 is one of the seeds compared" in refusal({"seeds": [2, 3], "search": {"seed": 3}})


@pytest.mark.parametrize("twice", [{"methods": ["disa", "disa"]}, {"seeds": [1, 1]}])
def test_methods_and_seeds_are_named_once(refusal, twice):
    assert "names one twice" in refusal(twice)


def test_a_point_lies_over_the_method_s_own_settings():
    training = TrainingConfig(learning_rate=0.5, learning_rates={"grpo": 0.25}, steps=7, steps_of={"grpo": 99})
    assert point_training(training, "grpo", {}).learning_rate == 0.25
    assert point_training(training, "disa", {}).learning_rate == 0.5
    assert point_training(training, "grpo", {"learning_rate": 0.125}).learning_rate == 0.125
    # One number of steps for all: steps_of would give a method more of them.
    assert point_training(training, "grpo", {}).method_steps("grpo") == 7


def test_a_folder_is_named_by_the_validated_settings_in_any_order():
    first = {"offline_share": 0.5, "learning_rate": "3e-4"}
    names = [
        point_name(point_training(TrainingConfig(), "disa", p), p)
        for p in (first, dict(reversed(first.items())), {"learning_rate": 3e-4, "offline_share": "0.5"})
    ]
    assert set(names) == {"learning_rate=0.0003,offline_share=0.5"}
