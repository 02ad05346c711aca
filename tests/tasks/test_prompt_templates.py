"""Prompt templates are filled in, or refused when the recipe is read."""

import pytest
from pydantic import ValidationError

from disa.tasks import make_task
from disa.tasks.config import CountdownConfig, GraphColoringConfig

SIZES = {"train_prompts": 2, "heldout_prompts": 1, "warmup_prompts": 0}
PLACES = {"countdown": ("{numbers}", "{target}"), "graph_coloring": ("{edges}", "{colors}")}
CONFIGS = {"countdown": CountdownConfig, "graph_coloring": GraphColoringConfig}


def config(name, template):
    return CONFIGS[name](name=name, prompt_template=template, **SIZES)


@pytest.mark.parametrize("name", PLACES)
def test_a_sentence_around_the_places_and_doubled_braces_are_kept(name):
    first, second = PLACES[name]
    task = make_task(config(name, f"Use {first}; reach {{{{{second}}}}}."))
    for row in task.prompts("train"):
        assert row.prompt.startswith("Use ") and row.prompt.endswith("}.") and "; reach {" in row.prompt
        assert set(row.prompt) <= set(task.alphabet)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kept", [0, 1])
def test_a_missing_place_is_refused(name, kept):
    with pytest.raises(ValidationError, match=f"prompt_template has no {PLACES[name][1 - kept]}"):
        config(name, f"only {PLACES[name][kept]}")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("more", ["{other}", "{", "}", "{}", "{0}"])
def test_anything_else_in_braces_is_refused_with_the_recipe(name, more):
    with pytest.raises(ValidationError, match="prompt_template"):
        config(name, "".join(PLACES[name]) + more)


@pytest.mark.parametrize("name", PLACES)
def test_a_place_in_doubled_braces_is_no_place(name):
    with pytest.raises(ValidationError, match="prompt_template has no"):
        config(name, "".join(f"{{{place}}}" for place in PLACES[name]))
