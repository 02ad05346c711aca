"""The forward projection: its weights and its gradient, by enumeration."""

import pytest
import torch

from disa.objectives.forward_projection import forward_projection_loss, target_weight

REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
PROPOSAL = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
REWARD = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
BETA = 2.0
LOG_Z = torch.log((REFERENCE * torch.exp(BETA * REWARD)).sum())


def weights(cap=torch.inf, log_z=LOG_Z):
    log_w = torch.log(REFERENCE / PROPOSAL)
    return target_weight(log_w, REWARD, log_z.expand(3), beta=BETA, cap=cap)


def test_a_weight_is_the_targets_density_over_the_proposals():
    target = REFERENCE * torch.exp(BETA * REWARD - LOG_Z)
    torch.testing.assert_close(weights(), target / PROPOSAL, rtol=1e-12, atol=0)
    assert (PROPOSAL * weights()).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_a_weight_is_capped():
    assert weights(cap=1.0).max() == 1.0
    torch.testing.assert_close(weights(cap=1.0), weights().clamp(max=1.0), rtol=0, atol=0)


def test_a_log_z_that_trains_is_refused():
    with pytest.raises(ValueError, match="log_z requires grad, but DISA's log_z is frozen"):
        weights(log_z=LOG_Z.clone().requires_grad_())


def test_its_expected_gradient_is_that_of_the_kl_from_the_target():
    target = REFERENCE * torch.exp(BETA * REWARD - LOG_Z)
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    # Every outcome as often as the proposal writes it: the mean over a batch is then the expectation.
    log_pi = logits.log_softmax(0)
    (expected,) = torch.autograd.grad(-(PROPOSAL * weights() * log_pi).sum(), logits)
    kl = (target * (target.log() - logits.log_softmax(0))).sum()
    torch.testing.assert_close(expected, torch.autograd.grad(kl, logits)[0], rtol=1e-12, atol=1e-15)
    rows = torch.tensor([0] * 1 + [1] * 3 + [2] * 6)
    loss = forward_projection_loss(logits.log_softmax(0)[rows], weights()[rows])
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected, rtol=1e-12, atol=1e-15)
