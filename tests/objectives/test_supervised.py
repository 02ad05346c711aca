"""Supervised learning against a model's own cross-entropy, by hand, and as a special case of other losses."""

import pytest
import torch

from disa.objectives.forward_projection import forward_projection_loss
from disa.objectives.supervised import supervised_loss

LOG_PI = torch.tensor([-3.0, -4.5, -2.0], dtype=torch.float64)
LENGTHS = torch.tensor([2, 4, 1])
WEIGHT = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)


def test_hand_computed_values():
    assert supervised_loss(LOG_PI, WEIGHT, length="sum").item() == pytest.approx(4.0 / 3)
    assert supervised_loss(LOG_PI, WEIGHT, length="mean", lengths=LENGTHS).item() == pytest.approx(4.0 / 2.5)
    # Small weights divide out.
    assert supervised_loss(LOG_PI, WEIGHT / 100, length="mean", lengths=LENGTHS).item() == pytest.approx(4.0 / 2.5)


def test_summed_it_is_the_forward_projection_with_another_weight():
    found = supervised_loss(LOG_PI, WEIGHT, length="sum")
    assert found.item() == pytest.approx(forward_projection_loss(LOG_PI, WEIGHT).item(), abs=1e-15)


def test_with_means_and_weight_one_it_is_the_cross_entropy_of_the_models_own_loss():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64)
    labels = torch.randint(7, (3, 5))
    labels[0, 2:] = labels[1, 4:] = labels[2, 1:] = -100
    token = torch.log_softmax(logits, -1).gather(2, labels.clamp(min=0)[..., None]).squeeze(-1)
    mask = labels != -100
    found = supervised_loss(
        (token * mask).sum(1), torch.ones(3, dtype=torch.float64), length="mean", lengths=mask.sum(1)
    )
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_gradients_agree_with_finite_differences(length):
    def loss(log_pi):
        return supervised_loss(log_pi, WEIGHT, length=length, lengths=LENGTHS)

    assert torch.autograd.gradcheck(loss, LOG_PI.clone().requires_grad_(), eps=1e-6, atol=1e-9)


def test_a_batch_without_weight_has_no_loss_and_means_need_lengths():
    nothing = torch.zeros(3, dtype=torch.float64)
    assert supervised_loss(LOG_PI, nothing, length="mean", lengths=LENGTHS).item() == 0.0
    with pytest.raises(ValueError, match="needs lengths"):
        supervised_loss(LOG_PI, WEIGHT, length="mean")
