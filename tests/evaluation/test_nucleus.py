"""Sampling for evaluation: the same draws as the offline sampler's, cut to the nucleus, or greedy."""

import numpy as np
import pytest
import torch

from disa.evaluation.generation import GenerationSettings
from disa.evaluation.nucleus import draw, nucleus
from disa.proposals.sampler import sample, uniforms
from disa.sampling import SamplingConfig

LENGTH = 7


def prompts(tokenizer, n):
    return [tokenizer(f"ab bc {'cd ' * (i % 3)}/4:")["input_ids"] for i in range(n)]


def numbers(n):
    return np.stack([uniforms(3, f"p{i}", "evaluation", 0, LENGTH) for i in range(n)])


def test_without_a_nucleus_draws_are_the_offline_samplers(model, tokenizer):
    law = SamplingConfig(temperature=0.7, max_completion_length=LENGTH)
    settings = GenerationSettings(temperature=0.7, max_tokens=LENGTH)
    theirs = sample(model, tokenizer, prompts(tokenizer, 64), numbers(64), law)
    ours = draw(model, tokenizer, prompts(tokenizer, 64), numbers(64), settings)
    assert ours == [(d.completion_ids, d.truncated) for d in theirs]
    assert len({tuple(ids) for ids, _ in ours}) > 10


def test_temperature_0_takes_the_most_likely_token(model, tokenizer):
    (ids, _), *_ = draw(
        model, tokenizer, prompts(tokenizer, 1), numbers(1), GenerationSettings(temperature=0, max_tokens=3, samples=1)
    )
    context = prompts(tokenizer, 1)[0]
    for token in ids:
        logits = model(torch.tensor([context])).logits[0, -1]
        assert token == int(logits.argmax())
        context = [*context, token]


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert nucleus(p, 0.7).tolist() == [[0, 0.4, 0, 0.3], [0.25, 0.25, 0.25, 0]]
    assert nucleus(p, 0.71).tolist()[0] == [0, 0.4, 0.2, 0.3]
    assert nucleus(p, 1e-9).tolist()[0] == [0, 0.4, 0, 0]


def test_tokens_outside_the_nucleus_are_never_drawn_and_those_inside_in_proportion(model, tokenizer):
    n = 2000
    settings = GenerationSettings(top_p=0.6, max_tokens=1)
    prompt = prompts(tokenizer, 1)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor(prompt)).logits[:, -1].double(), dim=-1)
    kept = nucleus(p, 0.6)[0]
    expected = (kept / kept.sum()).numpy()
    assert 1 < np.count_nonzero(expected) < len(expected)
    u = np.random.default_rng(0).random((n, 1))
    found = np.bincount([ids[0] for ids, _ in draw(model, tokenizer, prompt * n, u, settings)], minlength=len(expected))
    assert found[expected == 0].sum() == 0
    # Binomial standard error of a share at n = 2000 is at most 0.011; four of them.
    assert found / n == pytest.approx(expected, abs=0.045)


def test_greedy_decoding_has_one_completion_to_offer():
    with pytest.raises(ValueError, match="same completion 8 times"):
        GenerationSettings(temperature=0)
