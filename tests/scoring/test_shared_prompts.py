"""A prompt computed once for all its completions gives the log-probabilities and gradients of the plain way."""

import numpy as np
import pytest
import torch

from disa.lm import branch_attention, shared_prefix
from disa.lm.log_probs import PackedCompletions, PaddedCompletions, sequence_log_probs, token_log_probs
from disa.lm.shared_prefix import ARCHITECTURES, shared_attention, why_not_shared
from disa.testing import Space, random_model
from disa.testing.hf import to_causal_lm
from small_architectures import NAMES, VOCABULARY, ragged_rows, small_architecture

CPU = torch.device("cpu")
# The layers' norms compute in float32 even in a float64 model: 24 bits in each of a few layers, on values of some nats
# and, relatively, on gradients. A token attending to one too many or too few changes the first digit.
FLOAT32 = 1e-5


def one_by_one(model, prompts, completions, temperature=1.0):
    """Log-probability of each row, by the model's own forward on that row alone."""
    sums = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
        target = torch.tensor(completion, dtype=torch.long)[:, None]
        sums.append(logits[: len(completion)].log_softmax(-1).gather(1, target).sum())
    return torch.stack(sums)


def shared(model, prompts, completions, temperature=1.0):
    """The same through one flat row."""
    batch = PackedCompletions(prompts, completions, CPU)
    log_p, _ = token_log_probs(model, batch, temperature=temperature)
    return torch.zeros(len(prompts), dtype=log_p.dtype).index_add(0, batch.row, log_p)


def gradients(model, log_p):
    """Gradient of some weighted sum, by parameter."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(log_p), dtype=log_p.dtype)
    (weights * log_p).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_equal_gradients(found, expected, tolerance):
    """To the given share of each parameter's largest entry."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        assert (found[name] - gradient).abs().max().item() < tolerance * scale, name


def checkpoint(model):
    """Switch recomputation of layers on, by whichever of its names the library knows."""
    renamed = getattr(model, "activation_checkpointing_enable", None)
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.train()


@pytest.fixture(params=["one call", "fused halves", "lower right"])
def kernel(request, monkeypatch):
    """Every way that attention goes: short rows together, long ones on a CPU, long ones elsewhere."""
    monkeypatch.setattr(shared_prefix, "_DENSE", 2**20 if request.param == "one call" else 0)
    monkeypatch.setattr(branch_attention, "_fused", lambda query: request.param == "fused halves")


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_and_gradients_are_those_of_each_row_alone(name, kernel):
    model, (prompts, completions), temperature = small_architecture(name), ragged_rows(), 0.7
    expected = one_by_one(model, prompts, completions, temperature)
    found = shared(model, prompts, completions, temperature)
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32)
    assert_equal_gradients(gradients(model, found), gradients(model, expected), FLOAT32)


@pytest.mark.parametrize("name", NAMES)
def test_float32_gradients_agree_with_the_padded_path_to_rounding(name):
    model, (prompts, completions) = small_architecture(name, torch.float32), ragged_rows()
    padded = PaddedCompletions(prompts, completions, CPU)
    log_p, _ = token_log_probs(model, padded)
    expected = gradients(model, torch.zeros(len(prompts)).index_add(0, padded.row, log_p))
    found = gradients(model, shared(model, prompts, completions))
    # 24 bits, and sums of some hundred products in another order.
    assert_equal_gradients(found, expected, 1e-4)


@pytest.mark.parametrize("name", ["gemma2", "mistral with a window"])
def test_a_model_that_was_drawn_from_can_be_trained(name, kernel):
    branch_attention._band.cache_clear()
    model, (prompts, completions) = small_architecture(name), ragged_rows()
    with torch.inference_mode():
        drawn = shared(model, prompts, completions)
    found = shared(model, prompts, completions)
    assert found.tolist() == drawn.tolist() and all(g.abs().max() > 0 for g in gradients(model, found).values())


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral with a window"])
def test_equal_lengths_take_the_way_without_gathering_and_agree_as_well(name, kernel):
    model = small_architecture(name)
    ids = torch.randint(2, VOCABULARY, (8, 12), generator=torch.Generator().manual_seed(1)).tolist()
    prompts, completions = [ids[i // 4][:6] for i in range(8)], [row[6:] for row in ids]
    batch = PackedCompletions(prompts, completions, CPU)
    assert batch.groups.trunks.even and batch.groups.branches.even
    torch.testing.assert_close(
        shared(model, prompts, completions), one_by_one(model, prompts, completions), rtol=0, atol=FLOAT32
    )


def test_a_prompt_passes_the_model_once_and_a_completion_without_its_last_token():
    model, (prompts, completions) = small_architecture("llama"), ragged_rows()
    seen = []
    hook = model.model.embed_tokens.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    shared(model, prompts, completions)
    hook.remove()
    distinct = {tuple(p) for p in prompts}
    assert seen == [sum(map(len, distinct)) + sum(max(0, len(c) - 1) for c in completions)]


@pytest.mark.parametrize("tokens_per_batch", [1, 25, 60, 10_000])
def test_batches_under_any_budget_give_the_same_sums_in_the_order_of_the_rows(tokens_per_batch):
    model, (prompts, completions) = small_architecture("gemma3"), ragged_rows()
    expected = one_by_one(model, prompts, completions).detach().numpy()
    found = sequence_log_probs(model, prompts, completions, tokens_per_batch=tokens_per_batch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_checkpointed_layers_give_the_same_gradients_inside_the_context(name, kernel):
    model, (prompts, completions) = small_architecture(name), ragged_rows()
    expected = gradients(model, shared(model, prompts, completions))
    checkpoint(model)
    with shared_attention(model):
        found = gradients(model, shared(model, prompts, completions))
    assert_equal_gradients(found, expected, FLOAT32)


def test_a_layer_recomputed_outside_the_context_fails_instead_of_being_wrong():
    model, (prompts, completions) = small_architecture("llama"), ragged_rows()
    checkpoint(model)
    log_p = shared(model, prompts, completions)
    with pytest.raises(RuntimeError, match="size of tensor"):
        log_p.sum().backward()


def test_the_model_attends_as_before_afterwards():
    model, (prompts, completions) = small_architecture("qwen2"), ragged_rows()
    before = one_by_one(model, prompts, completions)
    implementation = model.config._attn_implementation
    sequence_log_probs(model, prompts, completions)
    assert model.config._attn_implementation == implementation
    assert torch.equal(one_by_one(model, prompts, completions), before)


def test_adapters_take_part_and_get_the_same_gradients(kernel):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(small_architecture("llama"), config).double()
    (prompts, completions), base = ragged_rows(), model.get_base_model()

    def trained(log_p):
        model.zero_grad()
        log_p.square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    expected = trained(one_by_one(model, prompts, completions))
    assert all("lora" in name for name in expected)
    assert_equal_gradients(trained(shared(base, prompts, completions)), expected, FLOAT32)


def test_other_architectures_say_why_they_go_the_plain_way():
    oracle = to_causal_lm(random_model(Space(vocabulary=4, length_limit=4), 1, np.random.default_rng(0)))
    assert why_not_shared(oracle).startswith("architecture disa_oracle is not one of cohere2, gemma2")
    assert all(why_not_shared(small_architecture(name)) is None for name in NAMES)
    assert {small_architecture(name).config.model_type for name in NAMES} == ARCHITECTURES


def test_attention_that_drops_weights_or_looks_ahead_is_not_shared():
    model = small_architecture("llama")
    model.model.layers[0].self_attn.attention_dropout = 0.1
    assert why_not_shared(model) is None
    assert why_not_shared(model, training=True) == "it drops attention weights"
    gemma = small_architecture("gemma3")
    gemma.config.use_bidirectional_attention = True
    assert why_not_shared(gemma) == "its attention is bidirectional"


def test_positions_that_depend_on_the_batch_go_the_plain_way():
    model = small_architecture("phi3")
    model.config.rope_parameters["rope_type"] = "longrope"
    assert why_not_shared(model) == "its longrope position embedding depends on the longest row of a batch"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_bfloat16_passes_agree_with_float32_to_their_rounding(name, kernel):
    model, (prompts, completions) = small_architecture(name, torch.float32), ragged_rows()
    exact = sequence_log_probs(model, prompts, completions)
    rounded = sequence_log_probs(model.bfloat16(), prompts, completions)
    tokens = np.maximum(1, [len(c) for c in completions])
    # 8 bits in each of two layers and the head, on logits of some ten nats.
    assert 0 < (np.abs(rounded - exact) / tokens).max() < 10 * 3 * 2.0**-8
