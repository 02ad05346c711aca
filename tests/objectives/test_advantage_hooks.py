"""Engines that take advantages: the hooks that docs/engines.md names exist, and one of them is run.

``make test-vllm`` installs the packages; where they are missing the tests are skipped.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import disa
from disa.objectives.trajectory_balance import (
    anchored_baseline,
    trajectory_balance_loss,
    trajectory_balance_residual,
)

BETA = 2.0


def source(package, path):
    """Syntax tree of a file of an installed package, which is not imported: it would load engines."""
    if (found := find_spec(package)) is None:
        pytest.skip(f"{package} is not installed, make test-vllm installs it")
    return ast.parse((Path(found.origin).parent / path).read_text(encoding="utf-8"))


def arguments(tree, owner, name):
    """Names of the arguments of a method."""
    methods = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == owner).body
    function = next(n for n in methods if isinstance(n, ast.FunctionDef) and n.name == name)
    return [argument.arg for argument in function.args.args]


def test_openrlhf_makes_advantages_in_one_method_from_the_fields_that_the_hook_reads():
    tree = source("openrlhf", "trainer/ppo_utils/experience_maker.py")
    assert arguments(tree, "RemoteExperienceMaker", "compute_advantages_and_returns") == ["self", "experiences"]
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {"rewards", "kl", "action_mask", "advantages", "returns", "index"} <= names
    trainer = source("openrlhf", "trainer/ppo_trainer.py")
    used = {
        node.func.id for node in ast.walk(trainer) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "RemoteExperienceMaker" in used


def test_tinkers_client_side_loss_with_these_advantages_sends_the_gradient_of_the_squared_residual():
    pytest.importorskip("tinker", reason="tinker is not installed, make test-vllm installs it")
    from tinker import types
    from tinker.lib.public_interfaces.training_client import TrainingClient

    generator = torch.Generator().manual_seed(0)
    lengths, group = [3, 5, 2, 4], torch.tensor([0, 0, 1, 1])
    token_log_pi = [-torch.rand(n, generator=generator) for n in lengths]
    log_ref = -4 * torch.rand(4, generator=generator, dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    log_z = torch.tensor([0.3, 0.3, 0.9, 0.9], dtype=torch.float64)

    def loss(data, logprobs):
        masks = [datum.loss_fn_inputs["mask"].to_torch() for datum in data]
        log_pi = torch.stack([(tokens * mask).double().sum() for tokens, mask in zip(logprobs, masks, strict=True)])
        advantage = disa.advantages(log_z=log_z, log_pi=log_pi, log_ref=log_ref, reward=reward, beta=BETA, group=group)
        return -(advantage * log_pi).mean(), {}

    masks = [torch.tensor([0.0] + [1.0] * (n - 1)) for n in lengths]  # one token of prompt
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(list(range(n))),
            loss_fn_inputs={"target_tokens": torch.arange(n), "mask": mask},
        )
        for n, mask in zip(lengths, masks, strict=True)
    ]
    outputs = [{"logprobs": types.TensorData.from_torch(tokens)} for tokens in token_log_pi]
    forward = types.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs)
    sent = TrainingClient._compute_custom_loss(data, loss, forward).data

    tokens = [t.double().requires_grad_() for t in token_log_pi]
    residual = trajectory_balance_residual(
        torch.stack([t[1:].sum() for t in tokens]), log_ref, reward, log_z, beta=BETA
    )
    baseline = anchored_baseline(residual, group, prior_strength=1.0)
    expected = torch.autograd.grad(trajectory_balance_loss(residual, baseline), tokens)
    for datum, gradient in zip(sent, expected, strict=True):
        # What the client sends are weights of -log pi, in float32: one rounding of numbers below ten.
        weights = torch.as_tensor(datum.loss_fn_inputs["weights"].to_torch()).double()
        torch.testing.assert_close(-weights, gradient, rtol=0, atol=1e-6)
        assert gradient.abs().max() > 0.1
