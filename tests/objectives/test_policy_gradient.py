"""GRPO and GSPO against hand-computed values, finite differences and TRL's own loss."""

import math

import pytest
import torch
from trl_losses import grpo_trainer_loss

from published_losses import group_advantage, grpo_loss, gspo_loss

ROUNDING = 1e-12  # a handful of float64 operations on numbers of order one
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
ADVANTAGE = torch.tensor([1.2, -0.7, 0.4, -0.9], dtype=torch.float64)


def log_probs(seed=0, spread=0.3):
    """Log-probabilities of four completions now and when they were drawn; ratios fall on both sides of the clip."""
    generator = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(4, 4, generator=generator, dtype=torch.float64)
    return old + spread * torch.randn(4, 4, generator=generator, dtype=torch.float64), old


def test_group_advantages_are_those_of_a_hand_computed_group():
    reward = torch.tensor([1.0, 0.0, 1.0, 0.0, 5.0, 7.0], dtype=torch.float64)
    found = group_advantage(reward, torch.tensor([0, 0, 0, 0, 1, 1]))
    half = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    one = 1 / (math.sqrt(2) + 1e-4)
    torch.testing.assert_close(found, torch.tensor([half, -half, half, -half, -one, one], dtype=torch.float64))


def test_a_group_of_one_and_a_group_of_equal_rewards_teach_nothing():
    found = group_advantage(torch.tensor([3.0, 1.0, 1.0]), torch.tensor([0, 1, 1]))
    assert found.tolist() == [0.0, 0.0, 0.0]


def test_grpo_clips_a_hand_computed_ratio_only_where_that_lowers_the_objective():
    ratio = torch.tensor([[1.5, 0.5]], dtype=torch.float64)
    zero, mask = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.long)
    up = grpo_loss(ratio.log(), zero, torch.tensor([2.0], dtype=torch.float64), mask, length="sum")
    down = grpo_loss(ratio.log(), zero, torch.tensor([-2.0], dtype=torch.float64), mask, length="sum")
    assert up.item() == pytest.approx(-(1.2 * 2 + 0.5 * 2), abs=ROUNDING)
    assert down.item() == pytest.approx(1.5 * 2 + 0.8 * 2, abs=ROUNDING)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("length", "loss_type", "scale"), [("mean", "grpo", 1.0), ("sum", "dr_grpo", 4.0), ("batch", "dapo", 1.0)]
)
def test_grpo_loss_and_gradient_are_those_of_trl(length, loss_type, scale, seed):
    now, old = log_probs(seed)
    ours, theirs = now.clone().requires_grad_(), now.clone().requires_grad_()
    loss = grpo_loss(ours, old, ADVANTAGE, MASK, clip_high=0.28, length=length)
    # dr_grpo divides by batch times the length limit instead of the batch.
    reference = scale * grpo_trainer_loss(
        theirs, old, ADVANTAGE, MASK, loss_type=loss_type, level="token", clip_low=0.2, clip_high=0.28, max_length=4
    )
    assert loss.item() == pytest.approx(reference.item(), abs=ROUNDING)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=ROUNDING)
    assert ours.grad.abs().max() > 0.01


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spread", [1e-4, 0.3])
def test_gspo_loss_and_gradient_are_those_of_trl(seed, spread):
    now, old = log_probs(seed, spread)
    ours, theirs = now.clone().requires_grad_(), now.clone().requires_grad_()
    loss = gspo_loss(ours, old, ADVANTAGE, MASK)
    reference = grpo_trainer_loss(
        theirs, old, ADVANTAGE, MASK, loss_type="grpo", level="sequence", clip_low=3e-4, clip_high=4e-4
    )
    assert loss.item() == pytest.approx(reference.item(), abs=ROUNDING)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=ROUNDING)
    # Ratios spread over 0.3 nats all lie outside so narrow a clip, and some seeds clip every completion.
    assert spread > 0.1 or ours.grad.abs().max() > 0.01


def test_gspo_with_sums_takes_the_plain_ratio_of_the_completion():
    now, old = torch.log(torch.tensor([[1.1, 1.2]], dtype=torch.float64)), torch.zeros(1, 2, dtype=torch.float64)
    one, mask = torch.ones(1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.long)
    wide = {"clip_low": 9.0, "clip_high": 9.0}
    assert gspo_loss(now, old, one, mask, length="sum", **wide).item() == pytest.approx(-1.1 * 1.2, abs=ROUNDING)
    assert gspo_loss(now, old, one, mask, **wide).item() == pytest.approx(-math.sqrt(1.1 * 1.2), abs=ROUNDING)


@pytest.mark.parametrize(
    ("loss", "length"),
    [*((loss, length) for loss in (grpo_loss, gspo_loss) for length in ("sum", "mean")), (grpo_loss, "batch")],
)
def test_gradients_agree_with_finite_differences(loss, length):
    now, old = log_probs()
    # Clip bounds far from every ratio here: at a bound the loss has a kink and no derivative.
    settings = {"clip_low": 0.9, "clip_high": 3.0, "length": length}
    assert torch.autograd.gradcheck(
        lambda x: loss(x, old, ADVANTAGE, MASK, **settings), now.requires_grad_(), eps=1e-6, atol=1e-8
    )


def test_fresh_completions_have_the_plain_policy_gradient():
    now, _ = log_probs()
    now.requires_grad_()
    grpo_loss(now, now, ADVANTAGE, MASK, length="mean").backward()
    expected = -ADVANTAGE[:, None] * MASK / MASK.sum(1, keepdim=True) / 4
    torch.testing.assert_close(now.grad, expected, rtol=0, atol=ROUNDING)


def test_on_fresh_completions_gspo_is_grpo_with_the_mean_over_completions_and_not_over_tokens():
    gradients = []
    for loss, length in ((gspo_loss, "mean"), (grpo_loss, "mean"), (grpo_loss, "batch")):
        now = log_probs()[0].requires_grad_()
        loss(now, now, ADVANTAGE, MASK, length=length).backward()
        gradients.append(now.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(gradients[2], -ADVANTAGE[:, None] * MASK / MASK.sum(), rtol=0, atol=ROUNDING)
    assert (gradients[1] - gradients[2]).abs().max() > 0.01
