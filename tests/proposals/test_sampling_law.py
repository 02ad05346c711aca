"""What may not change the distribution the draws come from."""

import numpy as np
import pytest
from pydantic import ValidationError

from disa.errors import DisaError
from disa.lm.sampler import draw_rows, uniforms
from disa.lm.sampling_config import SamplingConfig, encode_prompt, stop_token_ids
from disa.recipe import load_recipe
from disa.testing import Space, random_model
from disa.testing.hf import oracle_tokenizer, to_causal_lm

SPACE = Space(vocabulary=4, length_limit=4)
TABLE = random_model(SPACE, 1, np.random.default_rng(0))
TOKENIZER = oracle_tokenizer(SPACE)
LAW = SamplingConfig(max_completion_length=SPACE.length_limit)
N = 200
NUMBERS = np.stack([uniforms(0, "0", "reference", draw, SPACE.length_limit) for draw in range(N)])


def completions(**generation_settings):
    """Completions of a model whose own generation config says something."""
    model = to_causal_lm(TABLE)
    for name, value in generation_settings.items():
        setattr(model.generation_config, name, value)
    prompts, temperature = [encode_prompt(TOKENIZER, "0", LAW)] * N, LAW.temperature
    return [d.completion_ids for d in draw_rows(model, TOKENIZER, prompts, NUMBERS, temperature=temperature)]


@pytest.mark.parametrize("setting, value", [("top_p", 0.9), ("top_p", 0.0), ("top_k", 50), ("top_k", -1)])
def test_nucleus_and_top_k_are_refused_with_the_reason_in_code_and_in_a_recipe(
    setting, value, tiny_recipe, write_recipe
):
    with pytest.raises(ValidationError, match=f"{setting}=.*removes support"):
        SamplingConfig(**{setting: value})
    tiny_recipe["sampling"][setting] = value
    path = write_recipe(tiny_recipe)
    with pytest.raises(DisaError, match=f"{setting}=.*removes support.*log Z cannot be estimated.*Fix: "):
        load_recipe(path)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_defines_no_distribution_is_refused(temperature):
    with pytest.raises(ValidationError, match="temperature"):
        SamplingConfig(temperature=temperature)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.3},
        {"repetition_penalty": 1.5},
        {"max_length": 3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 3},
        {"min_length": 4},
        {"suppress_tokens": [2]},
        {"begin_suppress_tokens": [2]},
        {"bad_words_ids": [[2]]},
        {"sequence_bias": [[[2], -5.0]]},
        {"forced_eos_token_id": 0},
        {"exponential_decay_length_penalty": (1, 2.0)},
        {"num_beams": 2},
    ],
    ids=lambda s: next(iter(s)),
)
def test_settings_in_the_models_own_generation_config_do_not_change_the_draws(setting):
    """The law is the recipe's alone: a checkpoint's generation defaults are somebody else's taste."""
    assert completions(**setting) == completions()


def test_stop_tokens_of_the_model_end_a_completion_too_and_are_part_of_it():
    model = to_causal_lm(TABLE)
    model.generation_config.eos_token_id = [0, 2]
    assert stop_token_ids(model, TOKENIZER) == (0, 2)
    plain, stopped = completions(), completions(eos_token_id=[0, 2])
    for ids, other in zip(plain, stopped, strict=True):
        end = next((i + 1 for i, token in enumerate(ids) if token in (0, 2)), len(ids))
        assert other == ids[:end]


def test_prompts_of_different_length_in_one_batch_do_not_disturb_each_other():
    # Letters in front of the prompt's digit do not change its table, only its length.
    model, prompts = to_causal_lm(TABLE), [encode_prompt(TOKENIZER, text, LAW) for text in ("0", "ab0", "abcab0")]
    rows = [prompts[i % 3] for i in range(N)]
    mixed = draw_rows(model, TOKENIZER, rows, NUMBERS, temperature=LAW.temperature)
    assert [d.completion_ids for d in mixed] == completions()
