"""The method in one readable file gives the package's own log Z and loss, and runs from start to end."""

import importlib.util
from pathlib import Path

import pytest
import torch

from disa import estimate_log_partition
from disa.objectives.trajectory_balance import (
    anchored_baseline,
    trajectory_balance_loss,
    trajectory_balance_residual,
)

FILE = Path(__file__).parents[2] / "examples" / "disa_in_one_file.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("disa_in_one_file", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ran(example):
    """Log Z and the three models of a run of a tenth of the steps."""
    return example.main(warm_up_steps=(60, 10), per_prompt=16, steps=5)


def test_it_is_short_and_needs_neither_trl_nor_the_package():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 200
    assert "import disa" not in text and "trl" not in text


def test_its_log_z_is_the_packages(example, ran):
    _, reference, proposal, _ = ran
    torch.manual_seed(1)
    drawn = example.trajectories(reference, proposal, example.small_tokenizer(), 16, 0.25)
    assert sum(rewards.sum() for _, _, rewards, _ in drawn) > 10
    for log_ref, log_proposal, rewards, share in drawn:
        package = estimate_log_partition(
            rewards.numpy(),
            log_ref=log_ref.numpy(),
            log_proposal=log_proposal.numpy(),
            from_reference=[i < 16 * share for i in range(16)],
            beta=example.BETA,
            method="anchored",
        )
        # Both are float64 sums of sixteen terms.
        assert example.log_partition(log_ref, log_proposal, rewards, share).item() == pytest.approx(
            package.log_z, abs=1e-12
        )


def test_its_loss_and_gradient_are_the_packages(example):
    generator = torch.Generator().manual_seed(0)
    log_pi, log_ref, reward, log_z = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    log_pi.requires_grad_(True)
    own = example.balance_loss(log_pi, log_ref, reward, log_z, group_size=4, prior_strength=1.0)
    residual = trajectory_balance_residual(log_pi, log_ref, reward, log_z, beta=example.BETA)
    baseline = anchored_baseline(residual, torch.arange(12) // 4, prior_strength=1.0)
    package = trajectory_balance_loss(residual, baseline)
    assert own.item() == pytest.approx(package.item(), abs=1e-12)
    gradients = [torch.autograd.grad(loss, log_pi)[0] for loss in (own, package)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)


def test_its_completions_are_masked_to_their_end_token(example, ran):
    completion_ids, mask = example.draw(ran[1], *example.encode(example.small_tokenizer(), ["7="] * 32))
    ends = (completion_ids * mask == 1).sum(dim=1)
    assert mask.shape == completion_ids.shape and mask.sum() >= 32
    assert set(ends.tolist()) <= {0, 1}
    assert all(m.tolist() == sorted(m.tolist(), reverse=True) for m in mask)


def test_the_policy_moves_and_the_reference_does_not(example, ran):
    log_z, reference, _, policy = ran
    assert not log_z.requires_grad and not any(p.requires_grad for p in reference.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(reference.parameters(), policy.parameters(), strict=True)]
    assert all(moved)
