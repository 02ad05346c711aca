"""Decoding with shared prompts draws what transformers' generate draws from the same numbers."""

import copy
import logging

import numpy as np
import pytest
import torch

from disa.lm import sampler
from disa.lm.log_probs import sequence_log_probs
from disa.lm.sampler import _generate, draw_rows, draw_tokens, uniforms
from disa.warmup.small_model import character_tokenizer
from small_architectures import GENERATED_IN, NAMES, VOCABULARY, small_architecture

LENGTH, STOPS = 20, (1, 5)
TOKENIZER = character_tokenizer("".join(chr(ord("a") + i) for i in range(VOCABULARY - 2)))
# Norms compute in float32 even in a float64 model: 24 bits in each of 20 tokens, log-probabilities below 30 nats.
FLOAT32 = 20 * 30 * 2.0**-24


def prompts_and_numbers():
    """Prompts of three lengths, of 12, 8 and 4 rows, mixed."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in (6, 3, 9)]
    chosen = torch.tensor([0] * 12 + [1] * 8 + [2] * 4)[torch.randperm(24, generator=generator)].tolist()
    numbers = np.stack([uniforms(0, str(i), "reference", 0, LENGTH) for i in range(len(chosen))])
    return [prompts[i] for i in chosen], torch.as_tensor(numbers)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_draws_are_those_of_generate_and_log_probs_those_of_the_scorer(name, temperature):
    model, (prompts, numbers) = small_architecture(name, GENERATED_IN[name]), prompts_and_numbers()
    ids, log_probs = draw_tokens(model, prompts, numbers, STOPS, temperature=temperature)
    expected, _ = _generate(model, TOKENIZER, prompts, numbers, STOPS, temperature)
    assert ids == expected
    lengths = {len(row) for row in ids}
    assert len(lengths) > 5 and max(lengths) == LENGTH
    scored = sequence_log_probs(model, prompts, ids, temperature=temperature)
    np.testing.assert_allclose([sum(row) for row in log_probs], scored, rtol=0, atol=FLOAT32)
    assert [len(row) for row in log_probs] == [len(row) for row in ids]


@pytest.mark.parametrize("kept", [0.0, 0.75, 1.0])
def test_dropping_ended_rows_early_late_or_never_changes_no_draw(kept, monkeypatch):
    model, (prompts, numbers) = small_architecture("gemma3"), prompts_and_numbers()
    some = range(0, len(prompts), 4)
    alone = [draw_tokens(model, [prompts[i]], numbers[i][None], STOPS)[0][0] for i in some]
    monkeypatch.setattr(sampler, "_KEPT", kept)
    together, _ = draw_tokens(model, prompts, numbers, STOPS)
    assert [together[i] for i in some] == alone


def test_room_for_own_keys_grows_without_changing_a_draw(monkeypatch):
    model, (prompts, numbers) = small_architecture("llama"), prompts_and_numbers()
    expected = draw_tokens(model, prompts, numbers, STOPS)
    monkeypatch.setattr("disa.lm.decoding._ROOM", 1)
    assert draw_tokens(model, prompts, numbers, STOPS) == expected


def test_a_prompt_is_computed_once_for_all_its_rows_and_ended_rows_not_at_all():
    model, (prompts, numbers) = small_architecture("llama"), prompts_and_numbers()
    seen = []
    hook = model.model.embed_tokens.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    ids, _ = draw_tokens(model, prompts, numbers, STOPS)
    hook.remove()
    assert seen[0] == sum(map(len, {tuple(p) for p in prompts}))
    assert seen[1] == len(prompts) or seen[1] == sum(len(row) > 1 for row in ids)
    assert seen[1:] == sorted(seen[1:], reverse=True) and seen[-1] < len(prompts)
    # No more than a third of a step's rows have ended: 1 / 0.75.
    running = [sum(len(row) > step for row in ids) for step in range(1, LENGTH)]
    assert all(n <= size <= n / 0.75 for n, size in zip(running, seen[1:], strict=False))


def test_sampling_in_a_model_in_training_mode_and_with_checkpointed_layers_is_the_same():
    model, (prompts, numbers) = small_architecture("llama"), prompts_and_numbers()
    expected = draw_tokens(model, prompts, numbers, STOPS)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    assert draw_tokens(model.train(), prompts, numbers, STOPS) == expected


def test_bfloat16_draws_come_with_log_probs_within_its_rounding():
    model, (prompts, numbers) = small_architecture("qwen3", torch.float32), prompts_and_numbers()
    exact = copy.deepcopy(model)
    draws = draw_rows(model.bfloat16(), TOKENIZER, prompts, numbers.numpy(), temperature=1.0)
    ids = [d.completion_ids for d in draws]
    found = np.array([d.log_prob for d in draws])
    same = sequence_log_probs(model, prompts, ids)
    exact = sequence_log_probs(exact, prompts, ids)
    lengths = np.array([len(i) for i in ids])
    # 8 bits in each of two layers and the head, logits of some ten nats; scorer and sampler round differently.
    assert 0 < (np.abs(found - exact) / lengths).max() < 10 * 3 * 2.0**-8
    assert (np.abs(found - same) / lengths).max() < 10 * 3 * 2.0**-8


def test_a_model_that_cannot_share_prompts_says_why_once(monkeypatch, caplog):
    reason = "for this test of the log"
    monkeypatch.setattr(sampler, "why_not_shared", lambda model: reason)
    model, (prompts, numbers) = small_architecture("llama"), prompts_and_numbers()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            draw_rows(model, TOKENIZER, prompts[:2], numbers.numpy()[:2, :2], temperature=1.0)
    assert [r.getMessage() for r in caplog.records if reason in r.getMessage()] == [
        f"sampling: prompts are computed once per completion, not once per prompt: {reason}"
    ]
