"""The LM head in blocks: exact values and gradients, and no tensor of tokens times vocabulary."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from disa.lm import head
from disa.lm.head import Transform, head_log_probs

TOKENS, WIDTH, VOCABULARY = 37, 8, 101


def parts(dtype=torch.float64, *, tokens=TOKENS, bias=False):
    torch.manual_seed(0)
    linear = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    hidden = torch.randn(tokens, WIDTH, dtype=dtype, requires_grad=True)
    return hidden, linear, torch.randint(VOCABULARY, (tokens,))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(head, "_BLOCK_LOGITS", 5 * VOCABULARY)


def gradients(value, hidden, linear):
    value.backward(torch.linspace(-1, 2, len(value), dtype=value.dtype))
    found = [hidden.grad.clone(), *(p.grad.clone() for p in linear.parameters())]
    hidden.grad = None
    linear.zero_grad()
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("transform", [Transform(), Transform(scale=0.3), Transform(cap=0.8), Transform(0.7, 0.9)])
def test_values_entropies_and_gradients_are_those_of_the_whole_table(small_blocks, bias, temperature, transform):
    hidden, linear, targets = parts(bias=bias)
    logits = transform.scale * linear(hidden)
    logits = logits if transform.cap is None else transform.cap * (logits / transform.cap).tanh()
    table = (logits / temperature).log_softmax(-1)
    expected = table.gather(1, targets[:, None]).squeeze(1)
    how = {"transform": transform, "temperature": temperature}
    found, entropy = head_log_probs(hidden, linear, targets, entropy=True, **how)
    # float64 with 53 bits, sums of 101 terms.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, -(table.exp() * table).sum(-1), rtol=0, atol=1e-12)
    assert not entropy.requires_grad
    for a, b in zip(gradients(found, hidden, linear), gradients(expected, hidden, linear), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_passes_one_on(small_blocks):
    hidden, linear, targets = parts()
    linear.requires_grad_(False)
    head_log_probs(hidden, linear, targets)[0].sum().backward()
    assert linear.weight.grad is None
    assert hidden.grad.abs().max() > 0


def test_bfloat16_products_have_float32_reductions():
    hidden, linear, targets = parts(torch.float32)
    exact = head_log_probs(hidden, linear, targets)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = head_log_probs(hidden, linear, targets)[0]
    assert rounded.dtype == torch.float32
    # Inputs, products and logits keep 8 bits; logits are at most 3 in size. float32 rounding would be 2^16 finer.
    assert 2.0**-16 < (rounded - exact).abs().max() < 3 * 3 * 2.0**-8
    for value in gradients(rounded, hidden, linear):
        assert value.dtype == torch.float32


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("tokens", [50, 400])
def test_no_tensor_of_tokens_times_vocabulary_is_made_forward_or_backward(small_blocks, tokens):
    hidden, linear, targets = parts(tokens=tokens)
    with Largest() as largest:
        head_log_probs(hidden, linear, targets, entropy=True)[0].sum().backward()
    # The head itself, or one number a hidden unit and token: nothing that grows with both.
    assert largest.elements <= max(linear.weight.numel(), tokens * WIDTH) < tokens * VOCABULARY
