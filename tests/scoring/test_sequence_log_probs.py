"""Sequence log-probabilities: exact, whatever the batch, and only completion positions pass the head."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from disa.lm import head, log_probs
from disa.lm.batches import batches_by_length
from disa.lm.log_probs import sequence_log_probs
from disa.testing import EnumerableModel, Space, random_model
from disa.testing.hf import from_causal_lm, oracle_tokenizer, to_causal_lm
from disa.warmup.config import SmallModelConfig
from disa.warmup.small_model import character_tokenizer, small_model

SPACE = Space(vocabulary=4, length_limit=4)
MODEL = to_causal_lm(random_model(SPACE, 10, np.random.default_rng(0)))
# What the float32 module holds is the model; its log-probabilities are summed in float64 from here on.
TABLE = from_causal_lm(MODEL)
PAIRS = [(p, c) for p in range(10) for c in range(SPACE.completions)]
DIGITS = oracle_tokenizer(SPACE)("0123456789")["input_ids"]
# Four token log-probabilities below 10 nats each, rounded to float32's 24 bits: logits pass the head in float32.
FLOAT32 = 4 * 10 * 2.0**-24

LLAMA = small_model(
    SmallModelConfig(hidden_size=16, layers=2, heads=2, context_length=64), character_tokenizer("abcdefgh"), seed=0
).eval()
VOCABULARY = LLAMA.config.vocab_size
# Attention over other padding is added up in another order: a few float32 roundings in each of at most 20 tokens.
LLAMA_FLOAT32 = 20 * 16 * 2.0**-24


def oracle_scores(pairs=PAIRS, **settings):
    prompts, completions = [[DIGITS[p]] for p, _ in pairs], [SPACE.completion_ids(c) for _, c in pairs]
    return sequence_log_probs(MODEL, prompts, completions, **settings)


def random_rows(n=40, seed=0):
    """Prompts of 1 to 12 tokens and completions of 1 to 20."""
    rng = np.random.default_rng(seed)
    ids = [[rng.integers(2, VOCABULARY, rng.integers(1, top)).tolist() for _ in range(n)] for top in (13, 21)]
    return ids[0], ids[1]


def float64_log_probs(model, prompts, completions, temperature=1.0):
    """One row at a time, without padding, in float64: the plain definition."""
    model = small_copy(model).double()
    result = []
    with torch.no_grad():
        for p, c in zip(prompts, completions, strict=True):
            logits = model(torch.tensor([p + c])).logits[0, len(p) - 1 : -1] / temperature
            result.append(logits.log_softmax(-1).gather(1, torch.tensor(c)[:, None]).sum().item())
    return np.array(result)


def small_copy(model):
    copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_every_completion_of_every_prompt_has_its_enumerated_log_prob(temperature):
    exact = EnumerableModel(SPACE, TABLE.logits / temperature).log_probs
    scored = oracle_scores(temperature=temperature)
    assert scored.dtype == np.float64
    # Dividing by the temperature stretches the log-probabilities and their rounding.
    np.testing.assert_allclose(scored, exact.ravel(), rtol=0, atol=FLOAT32 / min(1.0, temperature))


def test_scored_probabilities_of_all_completions_add_to_one_at_any_temperature():
    for temperature in (0.5, 1.0, 2.0):
        total = logsumexp(oracle_scores(temperature=temperature).reshape(10, -1), axis=1)
        np.testing.assert_allclose(total, 0.0, rtol=0, atol=2 * FLOAT32)


def test_a_llama_gives_what_float64_without_padding_gives():
    prompts, completions = random_rows()
    scored = sequence_log_probs(LLAMA, prompts, completions, temperature=0.8)
    exact = float64_log_probs(LLAMA, prompts, completions, temperature=0.8)
    np.testing.assert_allclose(scored, exact, rtol=0, atol=LLAMA_FLOAT32)


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 100, 16384])
def test_batching_and_padding_do_not_change_a_log_prob(tokens_per_batch):
    prompts, completions = random_rows()
    alone = [sequence_log_probs(LLAMA, [p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    batched = sequence_log_probs(LLAMA, prompts, completions, tokens_per_batch=tokens_per_batch)
    np.testing.assert_allclose(batched, alone, rtol=0, atol=LLAMA_FLOAT32)


def test_results_stand_in_the_order_of_the_rows():
    prompts, completions = random_rows()
    order = np.random.default_rng(1).permutation(len(prompts))
    shuffled = sequence_log_probs(LLAMA, [prompts[i] for i in order], [completions[i] for i in order])
    scored = sequence_log_probs(LLAMA, prompts, completions)
    np.testing.assert_allclose(shuffled, scored[order], rtol=0, atol=LLAMA_FLOAT32)


def test_a_long_neighbour_does_not_change_a_short_row():
    short, long = [3, 4], list(np.random.default_rng(2).integers(2, VOCABULARY, 50))
    alone = sequence_log_probs(LLAMA, [[2]], [short])[0]
    beside = sequence_log_probs(LLAMA, [[2], [2]], [short, long])[0]
    assert beside == pytest.approx(alone, abs=LLAMA_FLOAT32)


@pytest.fixture
def blocks(monkeypatch):
    """Shapes of the hidden states that pass the head, and whether they are contiguous."""
    seen, logits = [], head._logits
    monkeypatch.setattr(head, "_logits", lambda h, *rest: seen.append((h.shape, h.is_contiguous())) or logits(h, *rest))
    return seen


@pytest.mark.parametrize("model", [MODEL, LLAMA], ids=["oracle", "llama"])
def test_only_completion_positions_pass_the_head_as_one_contiguous_block(model, blocks):
    prompts, completions = [[2, 3, 2, 3, 2], [3]], [[2, 3, 0], [3, 3, 3, 0]]
    sequence_log_probs(model, prompts, completions)
    width = model.get_output_embeddings().weight.shape[1]
    assert blocks == [((sum(map(len, completions)), width), True)]


def test_the_head_is_entered_in_blocks_of_bounded_size_with_the_same_result(monkeypatch, blocks):
    prompts, completions = random_rows()
    whole = sequence_log_probs(LLAMA, prompts, completions)
    blocks.clear()
    monkeypatch.setattr(head, "_BLOCK_LOGITS", 7 * VOCABULARY)
    in_blocks = sequence_log_probs(LLAMA, prompts, completions)
    sizes = [shape[0] for shape, _ in blocks]
    assert max(sizes) == 7
    assert sum(sizes) == sum(map(len, completions))
    np.testing.assert_allclose(in_blocks, whole, rtol=0, atol=LLAMA_FLOAT32)


def test_batches_hold_every_row_once_within_the_budget():
    lengths = [5, 1, 9, 3, 3, 8, 2, 30]
    batches = list(batches_by_length(lengths, 18))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        # A single row longer than the budget goes alone.
        assert padded <= 18 or len(batch) == 1


@pytest.mark.parametrize("budget", [20, 60, 10_000])
def test_batches_of_groups_hold_every_row_once_within_the_budget_and_a_prompt_as_rarely_as_they_can(budget):
    rng = np.random.default_rng(0)
    prompts = [[p] * rng.integers(1, 9) for p in range(6)]
    of = rng.integers(0, 6, 50)
    prompt_ids = [prompts[p] for p in of]
    completion_ids = [[1] * n for n in rng.integers(0, 12, 50)]
    batches = list(log_probs.group_batches(prompt_ids, completion_ids, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(50))
    for batch in batches:
        distinct = {tuple(prompt_ids[i]) for i in batch}
        longest = max(len(completion_ids[i]) for i in batch)
        padded = len(distinct) * max(map(len, distinct)) + len(batch) * longest
        # A single row longer than the budget goes alone.
        assert padded <= budget or len(batch) == 1
    if budget == 10_000:
        assert len(batches) == 1


def test_bfloat16_changes_a_log_prob_by_its_rounding_and_not_more():
    prompts, completions = random_rows()
    exact = sequence_log_probs(LLAMA, prompts, completions)
    rounded = sequence_log_probs(copy.deepcopy(LLAMA).bfloat16(), prompts, completions)
    per_token = np.abs(rounded - exact) / np.array([len(c) for c in completions])
    # Logits of an untrained model are below 1 in size; bfloat16 keeps 8 bits, in two layers and the head.
    assert 0 < per_token.max() < 4 * 2.0**-8


def test_prompts_and_completions_must_be_as_many_and_none_give_none():
    with pytest.raises(ValueError, match="1 prompts but 2 completions"):
        sequence_log_probs(LLAMA, [[2]], [[3], [4]])
    assert sequence_log_probs(LLAMA, [], []).shape == (0,)


def test_a_prompt_without_tokens_is_refused():
    """Its first token would be predicted by no position; reading the last one instead is wrong without a sign."""
    with pytest.raises(ValueError, match="prompt"):
        sequence_log_probs(LLAMA, [[], [2]], [[3, 4], [3]])


def test_tokens_of_tools_are_in_the_context_and_not_in_the_sum():
    prompts, completions = random_rows()
    rng = np.random.default_rng(1)
    own = [None if i % 3 == 0 else rng.integers(0, 2, len(c)).tolist() for i, c in enumerate(completions)]
    expected = []
    for p, c, mask in zip(prompts, completions, own, strict=True):
        upto = [0.0, *float64_log_probs(LLAMA, [p] * len(c), [c[: i + 1] for i in range(len(c))])]
        expected.append(sum(s for s, kept in zip(np.diff(upto), mask or [1] * len(c), strict=True) if kept))
    found = sequence_log_probs(LLAMA, prompts, completions, own=own)
    np.testing.assert_allclose(found, expected, atol=LLAMA_FLOAT32 * 4)
    assert np.abs(found - sequence_log_probs(LLAMA, prompts, completions)).max() > 10
