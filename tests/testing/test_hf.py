import numpy as np
import pytest
import torch
from frozen_oracle import Problem
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from disa.lm.log_probs import sequence_log_probs
from disa.lm.sampler import draw_rows, uniforms
from disa.lm.sampling_config import SamplingConfig, decode_completion, encode_prompt
from disa.testing import EnumerableModel, Space, random_model
from disa.testing.hf import from_causal_lm, oracle_tokenizer, register, save_oracle, to_causal_lm

SPACE = Space(vocabulary=4, length_limit=4)
MODEL = random_model(SPACE, 10, np.random.default_rng(0))
COMPLETIONS = [SPACE.completion_ids(i) for i in range(SPACE.completions)]
TOKENIZER = oracle_tokenizer(SPACE)
LAW = SamplingConfig(max_completion_length=SPACE.length_limit)
# Four token log-probabilities below 10 nats each, rounded to float32's 24 bits.
FLOAT32 = 4 * 10 * 2.0**-24


def prompt_ids(prompt):
    return encode_prompt(TOKENIZER, str(prompt), LAW)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scoring_gives_the_tables_log_probs_for_every_completion_of_every_prompt(temperature):
    rows = [(prompt_ids(p), c) for p in range(10) for c in COMPLETIONS]
    prompts, completions = zip(*rows, strict=True)
    model = to_causal_lm(MODEL)
    scored = sequence_log_probs(model, prompts, completions, temperature=temperature, tokens_per_batch=500)
    exact = EnumerableModel(SPACE, from_causal_lm(model).logits / temperature).log_probs
    np.testing.assert_allclose(scored, exact.ravel(), rtol=0, atol=FLOAT32)


def test_float64_module_agrees_with_the_arrays_to_rounding():
    model = to_causal_lm(MODEL, torch.float64)
    for prompt, exact in enumerate(MODEL.log_probs):
        for completion, log_prob in zip(COMPLETIONS, exact, strict=True):
            ids = torch.tensor([prompt_ids(prompt) + completion])
            log_p = model(ids).logits[0, :-1].log_softmax(-1)
            found = log_p.gather(1, ids[0, 1:, None]).sum().item()
            assert found == pytest.approx(log_prob, abs=1e-13)  # a few float64 roundings below 40 nats


def test_padding_on_either_side_leaves_the_logits_of_the_completion_alone():
    model = to_causal_lm(MODEL)
    ids = torch.tensor([prompt_ids(7) + [2, 1, 3]])
    pad = torch.full((1, 2), TOKENIZER.pad_token_id)
    padded = model(torch.cat([pad, ids, pad], dim=1)).logits[:, 2:6]
    assert torch.equal(padded, model(ids).logits)


def test_sampler_draws_with_the_exact_frequencies_and_reports_the_exact_log_probs():
    n, prompt = 8000, 3
    numbers = np.stack([uniforms(0, str(prompt), "reference", draw, SPACE.length_limit) for draw in range(n)])
    draws = draw_rows(to_causal_lm(MODEL), TOKENIZER, [prompt_ids(prompt)] * n, numbers, temperature=LAW.temperature)
    drawn = np.array([SPACE.number(draw.completion_ids) for draw in draws])
    expected = n * np.exp(MODEL.log_probs[prompt])
    common = expected >= 5  # the usual smallest cell of a chi-square test; rarer ones share a cell
    counts = np.bincount(drawn, minlength=SPACE.completions)
    observed = np.append(counts[common], counts[~common].sum())
    # With a fixed seed: an honest sampler fails at this level once in a thousand seeds.
    assert chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > 1e-3
    np.testing.assert_allclose([d.log_prob for d in draws], MODEL.log_probs[prompt][drawn], rtol=0, atol=FLOAT32)
    assert [d.truncated for d in draws] == SPACE.truncated[drawn].tolist()


def test_folder_round_trip_through_the_auto_classes_keeps_table_and_tokenizer(tmp_path):
    save_oracle(MODEL, tmp_path)
    register()  # twice is harmless
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    np.testing.assert_array_equal(from_causal_lm(model).logits, MODEL.logits.astype(np.float32))
    assert [name for name, _ in model.named_parameters()] == ["model.table.weight"]
    assert tokenizer("7abc")["input_ids"] == TOKENIZER("7abc")["input_ids"] == [11, 1, 2, 3]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 14)


def test_text_of_a_completion_is_its_letters():
    assert decode_completion(TOKENIZER, [2, 1, 0]) == "ba"
    assert decode_completion(TOKENIZER, [2, 1, 3, 3]) == "bacc"


def test_the_trainers_engine_computes_the_tables_log_probs_and_entropies(tmp_path):
    problem = Problem(tmp_path / "reference")
    trainer = problem.trainer(tmp_path / "out", problem.anchor())
    space, exact = problem.space, problem.reference
    tokens = torch.tensor(space.tokens)
    mask = torch.arange(space.length_limit) < torch.tensor(space.lengths)[:, None]
    token_entropy = -(np.exp(exact.token_log_probs) * exact.token_log_probs).sum(-1)
    for prompt in range(10):
        ids = torch.cat([torch.tensor([prompt_ids(prompt)]).expand(len(tokens), -1), tokens], dim=1)
        attention = torch.cat([torch.ones(len(tokens), 1, dtype=torch.long), mask.long()], dim=1)
        log_p, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attention, space.length_limit, compute_entropy=True
        )
        found = (log_p.double() * mask).sum(1).detach().numpy()
        np.testing.assert_allclose(found, exact.log_probs[prompt], rtol=0, atol=FLOAT32)
        np.testing.assert_allclose(entropy[:, 0].detach(), token_entropy[prompt, 0], rtol=0, atol=FLOAT32)
