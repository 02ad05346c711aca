"""The anchored leave-one-out baseline against loops, and its limits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disa.objectives.trajectory_balance import anchored_baseline


def by_loops(residual, group, n0):
    result = []
    for j in range(len(residual)):
        others = [residual[i] for i in range(len(residual)) if i != j and group[i] == group[j]]
        k = len(others) + 1
        result.append((k - 1) / (k - 1 + n0) * sum(others) / len(others) if others else 0.0)
    return result


rows = st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 3)), min_size=1, max_size=12)


@given(rows, st.floats(0, 100))
def test_it_equals_the_loops(rows, n0):
    residual, group = zip(*rows, strict=True)
    found = anchored_baseline(torch.tensor(residual, dtype=torch.float64), torch.tensor(group), prior_strength=n0)
    # Sums of at most 12 numbers below 50 in another order, in float64.
    assert found.tolist() == pytest.approx(by_loops(residual, group, n0), abs=1e-11)


RESIDUAL = torch.tensor([1.0, 2.0, 6.0, -4.0, 0.5], dtype=torch.float64)
GROUP = torch.tensor([7, 3, 7, 7, 3])


def test_without_prior_strength_it_is_the_mean_of_the_others():
    found = anchored_baseline(RESIDUAL, GROUP, prior_strength=0.0)
    assert found.tolist() == [1.0, 0.5, -1.5, 3.5, 2.0]


def test_without_prior_strength_log_z_cancels():
    # An error of log Z is the same number on all residuals of a prompt.
    shifted = RESIDUAL + torch.tensor([10.0, -3.0, 10.0, 10.0, -3.0])
    plain, moved = (r - anchored_baseline(r, GROUP, prior_strength=0.0) for r in (RESIDUAL, shifted))
    torch.testing.assert_close(plain, moved, rtol=0, atol=1e-12)  # float64 rounding at 10


@pytest.mark.parametrize("n0", [float("inf"), 1e300])
def test_with_infinite_prior_strength_it_is_zero(n0):
    assert anchored_baseline(RESIDUAL, GROUP, prior_strength=n0).tolist() == pytest.approx([0.0] * 5, abs=1e-290)


@pytest.mark.parametrize("n0", [0.0, 1.0, float("inf")])
def test_a_completion_alone_in_its_group_has_baseline_zero(n0):
    found = anchored_baseline(torch.tensor([5.0, 1.0, 1.0]), torch.tensor([0, 1, 1]), prior_strength=n0)
    assert found[0] == 0.0
    assert anchored_baseline(torch.tensor([5.0]), torch.tensor([0]), prior_strength=n0).tolist() == [0.0]


def test_it_carries_no_gradient_and_does_not_depend_on_its_own_completion():
    residual = RESIDUAL.clone().requires_grad_(True)
    assert not anchored_baseline(residual, GROUP, prior_strength=1.0).requires_grad
    changed = RESIDUAL.clone()
    changed[2] = 100.0
    before, after = (anchored_baseline(r, GROUP, prior_strength=1.0) for r in (RESIDUAL, changed))
    assert (before != after).tolist() == [True, False, False, True, False]


def test_the_order_of_rows_does_not_matter():
    order = torch.tensor([4, 2, 0, 3, 1])
    found = anchored_baseline(RESIDUAL, GROUP, prior_strength=1.0)[order]
    torch.testing.assert_close(found, anchored_baseline(RESIDUAL[order], GROUP[order], prior_strength=1.0))
