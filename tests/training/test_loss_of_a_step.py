"""One step's loss and gradient against the equation, written out in float64 on what the trainer was given."""

import copy

import pytest
import torch
from small_trainer import GENERATIONS, PROMPTS, RecordingTrainer
from transformers import TrainerCallback

from disa.lm.loading import load_model, load_tokenizer, trainable_model
from disa.training.run import TaskReward

# float32 forward passes: summed log-probabilities of some 7 tokens agree to about 1e-6 nats, and a residual of
# about 1 nat is squared.
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step, as the optimiser gets them."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.of = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def log_probs(model, inputs, temperature):
    """log p(y | x) of a batch's rows, one row at a time and without padding."""
    sums = []
    for prompt, prompt_mask, completion, mask in zip(
        inputs["prompt_ids"],
        inputs["prompt_mask"],
        inputs["completion_ids"],
        inputs["completion_mask"],
        strict=True,
    ):
        prompt, completion = prompt[prompt_mask.bool()], completion[mask.bool()]
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        table = torch.log_softmax(logits.double() / temperature, dim=-1)
        sums.append(sum(table[t, token] for t, token in enumerate(completion)))
    return torch.stack(sums)


def by_hand(small_run, policy, inputs, *, temperature=1.0, baseline, n0=1.0, undecided=lambda text: False):
    """Mean of (delta - b)^2 over the decided rows, the baseline by loops over each group."""
    reference, tokenizer = load_model(small_run.reference).double(), load_tokenizer(small_run.reference)
    beta = small_run.anchor.fingerprint.inverse_temperature
    log_pi, log_ref = log_probs(policy, inputs, temperature), log_probs(reference, inputs, temperature)
    prompts = {p.prompt: p for p in small_run.prompts}
    kept, deltas, names = [], [], []
    for row, (prompt_ids, completion_ids) in enumerate(
        zip(inputs["prompt_ids"], inputs["completion_ids"], strict=True)
    ):
        prompt = prompts[tokenizer.decode(prompt_ids, skip_special_tokens=True)]
        text = tokenizer.decode(completion_ids, skip_special_tokens=True)
        if not undecided(text):
            log_z = small_run.anchor.estimates[prompt.prompt_id].log_z
            kept.append(row)
            deltas.append(log_z + log_pi[row] - log_ref[row] - beta * small_run.task.reward(prompt, text))
            names.append(prompt.prompt_id)
    losses = []
    for i, delta in enumerate(deltas):
        others = [float(d.detach()) for j, d in enumerate(deltas) if j != i and names[j] == names[i]]
        k = len(others) + 1
        b = (k - 1) / (k - 1 + n0) * sum(others) / len(others) if baseline == "anchored" and others else 0.0
        losses.append((delta - b) ** 2)
    return sum(losses) / len(losses)


def residuals(small_run, policy, inputs):
    """delta of every row, from passes over single rows in float64."""
    reference = load_model(small_run.reference).double()
    beta = small_run.anchor.fingerprint.inverse_temperature
    log_pi, log_ref = (log_probs(model, inputs, 1.0).detach() for model in (policy, reference))
    return inputs["log_z"].double() + log_pi - log_ref - beta * inputs["raw_reward"].double()


def one_step(small_run, tmp_path, *, model=None, parts=None, **changes):
    """One step from the proposal's weights, which are not the reference's; with the policy before it, in float64."""
    model = model or trainable_model(small_run.proposal)
    before, gradients = copy.deepcopy(model).double().eval(), Gradients()
    parts = {"model": model, "reference": small_run.reference, "callbacks": [gradients], **(parts or {})}
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts=parts, **changes)
    trainer.train()
    return trainer, before, gradients.of


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("baseline", "n0"), [("none", 1.0), ("anchored", 0.0), ("anchored", 2.5)])
def test_raw_rewards_and_frozen_log_z_reach_the_loss_and_its_gradient(small_run, tmp_path, temperature, baseline, n0):
    trainer, before, gradients = one_step(
        small_run,
        tmp_path,
        parts={"anchor": small_run.anchor_for(temperature=temperature)},
        temperature=temperature,
        baseline=baseline,
        baseline_prior_strength=n0,
    )
    ((inputs, loss),) = trainer.losses
    assert len(set(inputs["log_z"].tolist())) == PROMPTS
    expected = by_hand(small_run, before, inputs, temperature=temperature, baseline=baseline, n0=n0)
    assert loss == pytest.approx(expected.item(), rel=LOSS_TOLERANCE)
    before.requires_grad_(True)
    expected.backward()
    for name, parameter in before.named_parameters():
        scale = max(parameter.grad.abs().max().item(), 1e-2)
        error = (gradients[name].double() - parameter.grad).abs().max().item()
        assert error < GRADIENT_TOLERANCE * scale, name


def test_micro_batches_add_up_to_the_loss_and_gradient_of_the_whole_batch(small_run, tmp_path):
    whole, _, gradients = one_step(small_run, tmp_path / "whole", baseline="none")
    logged = [whole.state.log_history[0]["loss"]]
    for size in (6, 1):
        count = PROMPTS * GENERATIONS // size
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count, "baseline": "none"}
        split, _, split_gradients = one_step(small_run, tmp_path / str(size), **changes)
        assert len(split.losses) == count
        logged.append(split.state.log_history[0]["loss"])
        for name, gradient in gradients.items():
            # Sums of the same 12 terms in another order, in float32.
            torch.testing.assert_close(split_gradients[name], gradient, rtol=1e-4, atol=1e-5)
    assert logged == pytest.approx([logged[0]] * 3, rel=LOSS_TOLERANCE)


@pytest.mark.parametrize("settings", [{}, {"residual_clip": 0.5}, {"length_scale": 3.0}])
def test_baselines_are_those_of_whole_groups_however_a_step_is_cut(small_run, tmp_path, settings):
    settings = {"baseline_prior_strength": 0.5, **settings}
    whole, _, gradients = one_step(small_run, tmp_path / "whole", **settings)
    logged = whole.state.log_history[0]["loss"]
    for size in (4, 1):
        count = PROMPTS * GENERATIONS // size
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
        split, _, split_gradients = one_step(small_run, tmp_path / str(size), **cut, **settings)
        groups = [inputs["group"].tolist() for inputs, _ in split.losses]
        assert any(groups[0][0] in later for later in groups[1:])  # or there would be nothing to keep together
        assert split.state.log_history[0]["loss"] == pytest.approx(logged, rel=LOSS_TOLERANCE)
        for name, gradient in gradients.items():
            # Sums of the same 12 terms in another order, in float32; the sampler's numbers are rounded otherwise.
            torch.testing.assert_close(split_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_the_length_scale_divides_the_gradient_and_the_clip_bounds_each_completion_s_pull(small_run, tmp_path):
    plain, _, gradients = one_step(small_run, tmp_path / "plain", baseline="none")
    scaled, _, found = one_step(small_run, tmp_path / "scaled", baseline="none", length_scale=8.0)
    for name, gradient in gradients.items():
        assert torch.equal(found[name], gradient / 8)  # a power of 2: no rounding
    ((inputs, loss),) = plain.losses
    bound = 0.5
    clipped, before, _ = one_step(small_run, tmp_path / "clipped", baseline="none", residual_clip=bound)
    deltas = residuals(small_run, before, clipped.losses[0][0])
    assert (deltas.abs() > bound).any() and (deltas.abs() < bound).any()
    assert clipped.state.log_history[0]["residual/clipped"] == (deltas.abs() > bound).double().mean()
    assert "residual/clipped" not in plain.state.log_history[0]
    assert clipped.losses[0][1] == pytest.approx(deltas.clamp(-bound, bound).square().mean().item(), rel=LOSS_TOLERANCE)


class Hesitant(TaskReward):
    """Leaves some completions undecided."""

    def __init__(self, task, undecided):
        super().__init__(task)
        self.undecided = undecided

    def __call__(self, completions, **columns):
        rewards = super().__call__(completions, **columns)
        return [None if self.undecided(c) else r for c, r in zip(completions, rewards, strict=True)]


@pytest.mark.parametrize("baseline", ["anchored", "none"])
def test_undecided_rewards_carry_no_gradient(small_run, tmp_path, baseline):
    def undecided(text):
        return text.endswith(("1", "2"))

    rewards = [Hesitant(small_run.task, undecided)]
    trainer, before, gradients = one_step(small_run, tmp_path, parts={"reward_funcs": rewards}, baseline=baseline)
    ((inputs, loss),) = trainer.losses
    assert 0 < inputs["raw_reward"].isnan().sum() < PROMPTS * GENERATIONS
    expected = by_hand(small_run, before, inputs, baseline=baseline, undecided=undecided)
    assert loss == pytest.approx(expected.item(), rel=LOSS_TOLERANCE)
    before.requires_grad_(True)
    expected.backward()
    for name, parameter in before.named_parameters():
        scale = max(parameter.grad.abs().max().item(), 1e-2)
        assert (gradients[name].double() - parameter.grad).abs().max().item() < GRADIENT_TOLERANCE * scale, name


def test_a_step_without_any_decided_reward_changes_nothing_and_logs_no_audit(small_run, tmp_path):
    rewards = [Hesitant(small_run.task, lambda text: True)]
    trainer, before, gradients = one_step(small_run, tmp_path, parts={"reward_funcs": rewards})
    assert trainer.losses[0][1] == 0.0
    assert all(not gradient.any() for gradient in gradients.values())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name).float()), name
    assert "residual/mean" not in trainer.state.log_history[0]


def test_the_weights_of_several_rewards_enter_the_raw_reward(small_run, tmp_path):
    class Half(TaskReward):
        __name__ = "half"

    rewards = [TaskReward(small_run.task), Half(small_run.task)]
    name = small_run.task.reward_fingerprint
    parts = {"reward_funcs": rewards, "anchor": small_run.anchor_for(reward=f"0.25*{name}+0.75*{name}")}
    trainer, before, _ = one_step(small_run, tmp_path, parts=parts, reward_weights=[0.25, 0.75])
    ((inputs, loss),) = trainer.losses
    expected = by_hand(small_run, before, inputs, baseline="anchored")
    assert loss == pytest.approx(expected.item(), rel=LOSS_TOLERANCE)
