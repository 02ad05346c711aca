"""Blends by enumeration: their laws are normalised, end in the plain models, and weigh draws without bias."""

import numpy as np
import pytest
import torch

from disa.lm.blend import blended_sequence_log_probs, draw_blended
from disa.lm.head import blend_logits
from disa.lm.log_probs import sequence_log_probs
from disa.lm.sampler import Stream
from disa.partition.log_weights import balance_log_weights, linear_weights
from small_architectures import VOCABULARY, small_architecture

STOP, PROMPT, TOLD = 1, [4, 9, 2], [7, 3, 4, 9, 2]
LETTERS = [token for token in range(VOCABULARY) if token != STOP]
ALL = [[STOP], *([a, STOP] for a in LETTERS), *([a, b] for a in LETTERS for b in LETTERS)]
"""Every completion of at most two tokens."""
LAMBDAS = (0.0, 0.3, 0.5, 1.0)
WEIGHTS = [(1 - share, share) for share in LAMBDAS]
T = 0.7
# Float64: sums of 507 probabilities, of logits up to 1e2.
EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(scope="module")
def models():
    reference = small_architecture("llama")
    strong = small_architecture("qwen3")
    return reference, strong


def streams(models, rows, told=PROMPT):
    return [Stream(models[0], [PROMPT] * rows), Stream(models[1], [told] * rows)]


@pytest.fixture(scope="module")
def log_probs(models):
    return blended_sequence_log_probs(streams(models, len(ALL)), ALL, WEIGHTS, temperature=T, tokens_per_batch=1000)


def plain(model, prompt, temperature=T):
    return sequence_log_probs(model, [prompt] * len(ALL), ALL, temperature=temperature)


def test_every_component_is_a_distribution_over_completions(log_probs):
    assert np.allclose(np.exp(log_probs).sum(axis=0), 1.0, **EXACT)


def test_the_ends_of_a_bridge_are_the_plain_models(models, log_probs):
    assert np.allclose(log_probs[:, 0], plain(models[0], PROMPT), **EXACT)
    assert np.allclose(log_probs[:, -1], plain(models[1], PROMPT), **EXACT)


@torch.inference_mode()
def test_a_component_is_the_softmax_of_the_weighted_logits_at_every_token(models, log_probs):
    for i in (0, 5, 200, 506):
        total = np.zeros(len(WEIGHTS))
        for t, token in enumerate(ALL[i]):
            ids = torch.tensor([PROMPT + ALL[i][:t]])
            z, other = (model(ids).logits[0, -1] for model in models)
            for j, (a, b) in enumerate(WEIGHTS):
                total[j] += torch.log_softmax((a * z + b * other) / T, dim=0)[token].item()
        # The model's own, unshared forward pass; norms compute in float32 even in a float64 model.
        assert np.allclose(log_probs[i], total, rtol=0, atol=2 * 30 * 2.0**-24)


def test_balance_weights_of_the_mixture_are_unbiased_by_enumeration(log_probs):
    log_ref, alpha = log_probs[:, 0], 0.25
    log_mu = np.logaddexp.reduce(log_probs[:, 1:3], axis=1) - np.log(2)
    soft = np.random.default_rng(0).random(len(ALL))
    w = linear_weights(balance_log_weights(log_ref - log_mu, np.full(len(ALL), alpha)))
    drawn = alpha * np.exp(log_ref) + (1 - alpha) * np.exp(log_mu)
    assert w.max() <= 1 / alpha
    assert np.allclose(drawn @ w, 1.0, **EXACT)
    assert np.allclose(drawn @ (w * soft), np.exp(log_ref) @ soft, **EXACT)


def test_a_reference_that_was_told_more_is_scored_behind_what_it_was_told(models):
    reference = models[0]
    found = blended_sequence_log_probs(
        streams((reference, reference), len(ALL), TOLD), ALL, [(1.0, 0.0), (0.4, 0.6), (0.0, 1.0)], temperature=T
    )
    assert np.allclose(found[:, 0], plain(reference, PROMPT), **EXACT)
    assert np.allclose(found[:, 2], plain(reference, TOLD), **EXACT)
    assert np.allclose(np.exp(found).sum(axis=0), 1.0, **EXACT)
    assert not np.allclose(found[:, 0], found[:, 2], atol=0.1)


def test_a_weight_on_the_reference_alone_is_a_temperature(models):
    found = blended_sequence_log_probs(streams(models, len(ALL)), ALL, [(1 / 1.6, 0.0)], temperature=T)
    assert np.allclose(found[:, 0], plain(models[0], PROMPT, temperature=1.6 * T), **EXACT)


def test_a_draw_has_the_log_probs_that_the_scorer_gives_it(models):
    rows, limit = 60, 12
    numbers = torch.rand(rows, limit, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    component = torch.arange(rows) % len(WEIGHTS)
    ids, drawn = draw_blended(streams(models, rows), WEIGHTS, component, numbers, [STOP], temperature=T)
    assert min(map(len, ids)) < limit == max(map(len, ids)), "some end early and some are cut"
    scored = blended_sequence_log_probs(streams(models, rows), ids, WEIGHTS, temperature=T)
    # Norms compute in float32 even in a float64 model: 24 bits in each token, log-probabilities below 30 nats.
    assert np.allclose(drawn, scored, rtol=0, atol=limit * 30 * 2.0**-24)


def test_each_row_is_drawn_by_its_own_component(models):
    # Evenly spaced numbers: by inversion, each token comes as often as its probability says, to within one draw.
    rows = 500
    numbers = ((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)[:, None]
    for j, weights in enumerate(WEIGHTS):
        component = torch.full((rows,), j)
        ids, _ = draw_blended(streams(models, rows), WEIGHTS, component, numbers, [STOP], temperature=T)
        counts = np.bincount([row[0] for row in ids], minlength=VOCABULARY)
        singles = [[token] for token in range(VOCABULARY)]
        law = blended_sequence_log_probs(streams(models, VOCABULARY), singles, [weights], temperature=T)[:, 0]
        assert np.abs(counts - rows * np.exp(law)).max() <= 1.0


def test_a_token_that_one_model_lacks_is_written_by_no_blend_with_it(models):
    larger = small_architecture("llama")
    larger.resize_token_embeddings(VOCABULARY + 3)
    with torch.no_grad():
        larger.lm_head.weight[VOCABULARY:] = larger.lm_head.weight[:3]
    pair = (models[1], larger)
    singles = [[token] for token in range(VOCABULARY + 3)]
    found = blended_sequence_log_probs(streams(pair, len(singles)), singles, WEIGHTS, temperature=T)
    assert np.allclose(np.exp(found).sum(axis=0), 1.0, **EXACT)
    assert np.isneginf(found[VOCABULARY:, :3]).all() and np.isfinite(found[VOCABULARY:, 3]).all()


def test_a_part_of_weight_zero_is_left_out_whatever_it_holds():
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[torch.nan, torch.inf, 0.0]])
    assert torch.equal(blend_logits([first, second], (1.0, 0.0)), first)
