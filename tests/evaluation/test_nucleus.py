"""Sampling for evaluation: the same draws as the offline sampler's, cut to the nucleus, or greedy."""

import copy

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


def whole_sort(p, top_p):
    """The definition, by putting every token in order."""
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(p).scatter(1, order, torch.where(ordered.cumsum(-1) - ordered < top_p, ordered, 0.0))


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.95, 0.999])
def test_in_a_large_vocabulary_the_nucleus_is_that_of_all_tokens_in_order_also_among_equal_ones(top_p):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 5000, generator=generator, dtype=torch.float64) * torch.tensor([[0.01, 1, 2, 4, 8, 30]]).T
    scores[1] = (scores[1] * 2).round()  # many equal probabilities
    scores[2, 5:] = scores[2, 4]
    p = torch.softmax(scores, dim=-1)
    assert torch.equal(nucleus(p, top_p), whole_sort(p, top_p))
    one = torch.full((1, 3000), 1 / 3000, dtype=torch.float64)
    assert torch.equal(nucleus(one, top_p), whole_sort(one, top_p))


def test_a_checkpoints_own_generation_settings_change_nothing(model, tokenizer, monkeypatch):
    settings = GenerationSettings(temperature=0.7, max_tokens=LENGTH)
    plain = draw(model, tokenizer, prompts(tokenizer, 16), numbers(16), settings)
    own = copy.deepcopy(model.generation_config)
    # Each would rule out tokens that were drawn.
    own.no_repeat_ngram_size, own.suppress_tokens = 1, [ids[0] for ids, _ in plain[:3]]
    monkeypatch.setattr(model, "generation_config", own)
    assert draw(model, tokenizer, prompts(tokenizer, 16), numbers(16), settings) == plain


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
