"""What a recipe may compare: equal searches, one target, one budget."""

import pytest

from disa.comparison.config import (
    ComparisonConfig,
    SearchConfig,
    check_points,
    point_name,
    point_training,
    read_comparison,
)
from disa.errors import DisaError
from disa.recipe import load_recipe
from disa.training.config import TrainingConfig


@pytest.fixture
def refusal(tiny_recipe, write_recipe):
    """The message that a comparison section is refused with."""

    def refuse(comparison):
        with pytest.raises(DisaError) as caught:
            read_comparison(load_recipe(write_recipe(tiny_recipe | {"comparison": comparison})))
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
    message = refusal({"methods": ["disa_both"], "search": {"points": [{"offline_share": 1.5}]}})
    assert "offline_share" in message and "less than 1" in message


@pytest.mark.parametrize("methods", [["disa"], ["grpo", "disa", "disa_both"]])
def test_disa_with_an_offline_share_is_another_method_of_the_comparison(refusal, methods):
    search = {"points": [{"learning_rate": 0.1}], "points_of": {"disa": [{"offline_share": 0.5}]}}
    message = refusal({"methods": methods, "search": search})
    assert "search.points_of.disa sets offline_share 0.5, with which disa is disa_both: compare disa_both" in message
    assert "\n" not in message
    # Where the run's own DISA has a share, the comparison's has to say that it has none.
    training = TrainingConfig(offline_share=0.8)
    with pytest.raises(ValueError, match="training sets offline_share 0.8, with which disa is disa_both"):
        check_points(ComparisonConfig(methods=tuple(methods)), training)
    none = {"disa": tuple({"learning_rate": rate, "offline_share": 0.0} for rate in (0.1, 0.2, 0.3))}
    check_points(ComparisonConfig(methods=tuple(methods), search=SearchConfig(points_of=none)), training)
    check_points(ComparisonConfig(methods=("disa_both",)), training)


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
        point_name(point_training(TrainingConfig(), "disa_both", p), p)
        for p in (first, dict(reversed(first.items())), {"learning_rate": 3e-4, "offline_share": "0.5"})
    ]
    assert set(names) == {"learning_rate=0.0003,offline_share=0.5"}
