"""Sampling for evaluation: the same draws as the offline sampler's, cut to the nucleus, or greedy."""

import collections
import copy
import functools

import numpy as np
import pytest
import torch

from disa.evaluation.generation import GenerationSettings
from disa.evaluation.nucleus import nucleus, pick_in_nucleus
from disa.lm.sampler import draw_rows, uniforms
from disa.lm.sampling_config import stop_token_ids
from disa.warmup.small_model import character_tokenizer
from small_architectures import GENERATED_IN, NAMES, VOCABULARY, small_architecture

LENGTH = 7


def prompts(tokenizer, n):
    return [tokenizer(f"ab bc {'cd ' * (i % 3)}/4:")["input_ids"] for i in range(n)]


def numbers(n):
    return np.stack([uniforms(3, f"p{i}", "evaluation", 0, LENGTH) for i in range(n)])


def draw(model, tokenizer, rows, u, settings):
    pick = functools.partial(pick_in_nucleus, top_p=settings.top_p)
    u = u[:, : settings.max_tokens]
    drawn = draw_rows(model, tokenizer, rows, u, temperature=settings.temperature, pick=pick)
    return [(d.completion_ids, d.truncated) for d in drawn]


def test_a_nucleus_of_everything_draws_as_the_offline_sampler_does(model, tokenizer):
    settings = GenerationSettings(temperature=0.7, max_tokens=LENGTH)
    theirs = draw_rows(model, tokenizer, prompts(tokenizer, 64), numbers(64), temperature=0.7)
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


def whole(p, top_p):
    """The nucleus as probabilities of the whole vocabulary."""
    ids, kept = nucleus(p, top_p)
    return torch.zeros_like(p).scatter_add(1, ids, kept)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert whole(p, 0.7).tolist() == [[0, 0.4, 0, 0.3], [0.25, 0.25, 0.25, 0]]
    assert whole(p, 0.71).tolist()[0] == [0, 0.4, 0.2, 0.3]
    assert whole(p, 1e-9).tolist()[0] == [0, 0.4, 0, 0]


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
    assert torch.equal(whole(p, top_p), whole_sort(p, top_p))
    one = torch.full((1, 3000), 1 / 3000, dtype=torch.float64)
    assert torch.equal(whole(one, top_p), whole_sort(one, top_p))


def test_few_tokens_of_a_large_vocabulary_are_left_to_be_sorted():
    # Sorting all of them at every step takes several times as long as drawing from all of them.
    scores = torch.randn(4, 152_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[:, :50] += 15
    ids, kept = nucleus(torch.softmax(scores, dim=-1), 0.95)
    assert 50 <= ids.shape[1] < 1000
    assert (kept.sum(dim=-1) >= 0.95).all()


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
    settings = GenerationSettings(temperature=3.0, top_p=0.6, max_tokens=1)  # warm: its first token is sure
    prompt = prompts(tokenizer, 1)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor(prompt)).logits[:, -1].double() / settings.temperature, dim=-1)
    kept = whole(p, 0.6)[0]
    expected = (kept / kept.sum()).numpy()
    assert 1 < np.count_nonzero(expected) < len(expected)
    u = np.random.default_rng(0).random((n, 1))
    found = np.bincount([ids[0] for ids, _ in draw(model, tokenizer, prompt * n, u, settings)], minlength=len(expected))
    assert found[expected == 0].sum() == 0
    # Binomial standard error of a share at n = 2000 is at most 0.011; four of them.
    assert found / n == pytest.approx(expected, abs=0.045)


def exact_law(model, prompt, stops, settings):
    """Probability of every completion under the cut law, by the definition: one plain forward a prefix."""
    sampling, open_ = {}, {(): 1.0}
    for step in range(settings.max_tokens):
        longer = {}
        for prefix, before in open_.items():
            with torch.no_grad():
                scores = model(torch.tensor([[*prompt, *prefix]])).logits[:, -1].double()
            p = whole_sort(torch.softmax(scores / settings.temperature, dim=-1), settings.top_p)[0]
            for token in p.nonzero().flatten().tolist():
                ended = token in stops or step + 1 == settings.max_tokens
                (sampling if ended else longer)[(*prefix, token)] = before * float(p[token] / p.sum())
        open_ = longer
    return sampling


def test_completions_of_shared_prompts_follow_the_exact_law_cut_to_the_nucleus_at_every_step(model, tokenizer):
    n, settings = 3000, GenerationSettings(temperature=2.0, top_p=0.7, max_tokens=3)
    short, long = prompts(tokenizer, 3)[0], prompts(tokenizer, 3)[2]
    u = np.random.default_rng(0).random((2 * n, settings.max_tokens))
    pick = functools.partial(pick_in_nucleus, top_p=settings.top_p)
    rows = draw_rows(model, tokenizer, [short, long] * n, u, temperature=settings.temperature, pick=pick)
    for prompt, own in ((short, rows[::2]), (long, rows[1::2])):
        sampling = exact_law(model, prompt, stop_token_ids(model, tokenizer), settings)
        assert sum(sampling.values()) == pytest.approx(1.0, abs=1e-12) and len(sampling) > 5
        found = collections.Counter(tuple(d.completion_ids) for d in own)
        assert found.keys() <= sampling.keys()
        # 24 bits of float32 in the logits, below 30, of each of three tokens.
        expected = [np.log(sampling[tuple(d.completion_ids)]) for d in own]
        np.testing.assert_allclose([d.log_prob for d in own], expected, rtol=0, atol=3 * 30 * 2.0**-24)
        # Each count is binomial: five of its own standard errors.
        for completion, p in sampling.items():
            assert abs(found[completion] - n * p) <= 5 * np.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.7), (1.0, 1.0), (0, 1.0)])
def test_with_shared_prompts_draws_are_those_of_generate_from_the_same_numbers(name, temperature, top_p, monkeypatch):
    model = small_architecture(name, GENERATED_IN[name])
    tokenizer = character_tokenizer("".join(map(chr, range(97, 95 + VOCABULARY))))
    generator = torch.Generator().manual_seed(0)
    distinct = [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in (6, 3, 9)]
    rows = [distinct[i % 3] for i in range(24)]
    settings = GenerationSettings(temperature=temperature, top_p=top_p, max_tokens=15, samples=1)
    u = np.stack([uniforms(0, f"p{i}", "evaluation", 0, 15) for i in range(24)])
    # Fifteen random tokens rarely end; a second stop token makes rows end, and be dropped, at different lengths: one
    # that the model draws about every eighth time.
    drawn = np.concatenate([ids for ids, _ in draw(model, tokenizer, rows, u, settings)])
    often = int(np.abs(np.bincount(drawn, minlength=VOCABULARY)[2:] / len(drawn) - 1 / 8).argmin()) + 2
    model.generation_config.eos_token_id = [1, often]
    shared = draw(model, tokenizer, rows, u, settings)
    monkeypatch.setattr("disa.lm.sampler.why_not_shared", lambda model: "for this test")
    assert draw(model, tokenizer, rows, u, settings) == shared
    assert temperature == 0 or len({len(ids) for ids, _ in shared}) > 5


def test_a_prompt_is_computed_once_for_all_its_samples(model, tokenizer):
    rows = prompts(tokenizer, 3) * 8
    seen = []
    hook = model.model.embed_tokens.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    draw(model, tokenizer, rows, numbers(24), GenerationSettings(top_p=0.6, max_tokens=LENGTH))
    hook.remove()
    assert seen[0] == sum(map(len, prompts(tokenizer, 3)))
    assert max(seen[1:]) <= len(rows)


def test_greedy_decoding_has_one_completion_to_offer():
    with pytest.raises(ValueError, match="same completion 8 times"):
        GenerationSettings(temperature=0)
