"""Completions in several optimiser steps: what each counts, what is logged, and when they are given up."""

import math

import pytest
import torch
from small_trainer import GENERATIONS, PROMPTS, RecordingTrainer
from test_loss_of_a_step import LOSS_TOLERANCE, log_probs
from transformers import TrainerCallback

from disa import DisaError
from disa.lm.loading import load_model

CAP = 1.05


class Policies(TrainerCallback):
    """Keeps the policy before every step, in float64, and the optimiser's state after it."""

    def __init__(self, reference):
        self.reference, self.before, self.moments = reference, [], []

    def on_step_begin(self, args, state, control, model, **kwargs):
        # A copy of the model would ask the original: its forward is the trainer's.
        policy = load_model(self.reference)
        policy.load_state_dict(model.state_dict())
        self.before.append(policy.double())

    def on_step_end(self, args, state, control, optimizer, **kwargs):
        states = optimizer.state.values()
        self.moments.append([s["exp_avg"].clone() for s in states])


def trained(small_run, tmp_path, **changes):
    policies = Policies(small_run.reference)
    changes = {"learning_rate": 0.05, "weight_cap": CAP, "max_steps": 4} | changes
    parts = {"callbacks": [policies]}
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, parts=parts, **changes)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return trainer, policies, lines


def log_weights(policies, step, inputs):
    """log pi and log pi / pi_sampler of every row, each sampler being the policy of the row's own step."""
    with torch.no_grad():
        log_pi = log_probs(policies.before[step], inputs, 1.0)
        drawn = inputs["drawn"].tolist()
        by_step = {d: log_probs(policies.before[d], inputs, 1.0) for d in set(drawn)}
    return log_pi, log_pi - torch.stack([by_step[d][row] for row, d in enumerate(drawn)])


def loss_by_hand(small_run, policies, step, inputs):
    """Mean over the rows of w (delta - b)^2, weight and baseline by loops."""
    reference, beta = load_model(small_run.reference).double(), small_run.anchor.fingerprint.inverse_temperature
    log_pi, log_weight = log_weights(policies, step, inputs)
    with torch.no_grad():
        log_ref = log_probs(reference, inputs, 1.0)
    delta = (inputs["log_z"] + log_pi - log_ref - beta * inputs["raw_reward"].double()).tolist()
    w = [min(math.exp(x), CAP) for x in log_weight.tolist()]
    # A prompt's completions of one step: the prompt alone would mix those of several.
    names = [(d, *ids) for d, ids in zip(inputs["drawn"].tolist(), inputs["prompt_ids"].tolist(), strict=True)]
    total = 0.0
    for j in range(len(w)):
        others = [i for i in range(len(w)) if i != j and names[i] == names[j]]
        b = sum(w[i] * delta[i] for i in others) / (1.0 + sum(w[i] for i in others))
        total += w[j] * (delta[j] - b) ** 2
    return total / len(w)


REUSES = {
    "all of a batch again": {"num_iterations": 4},
    "earlier ones mixed in": {"replay_share": 0.4, "replay_generations": 2},
    "both": {"num_iterations": 2, "replay_share": 0.25},
}


@pytest.mark.parametrize("changes", REUSES.values(), ids=REUSES.keys())
def test_a_reused_completion_counts_its_capped_ratio_and_its_baseline_those_of_its_group(small_run, tmp_path, changes):
    trainer, policies, lines = trained(small_run, tmp_path, min_ess=0.0, learning_rate=0.01, **changes)
    found, stale = [loss for _, loss in trainer.losses], []
    for step, (inputs, loss) in enumerate(trainer.losses):
        stale += [step - d for d in inputs["drawn"].tolist()]
        assert loss == pytest.approx(loss_by_hand(small_run, policies, step, inputs), rel=LOSS_TOLERANCE)
        log_weight = log_weights(policies, step, inputs)[1]
        w, line = log_weight.exp(), lines[step]
        # float32 passes: log-probabilities of some 7 tokens agree to about 1e-6 nats.
        assert line["reuse/kl_sampler"] == pytest.approx(-log_weight.mean().item(), abs=1e-5)
        assert line["reuse/ess"] == pytest.approx((w.sum() ** 2 / w.square().sum() / len(w)).item(), abs=1e-5)
        assert line["reuse/capped"] == pytest.approx((w > CAP).double().mean().item())
        assert line["reuse/staleness"] == pytest.approx((step - inputs["drawn"]).double().mean().item())
        assert line["reuse/skipped"] == 0.0
    assert len(set(found)) == 4 and max(stale) >= 2
    assert max(line["reuse/capped"] for line in lines) > 0 and min(line["reuse/ess"] for line in lines) < 0.99


def test_the_audit_reads_the_policy_s_own_completions_alone(small_run, tmp_path):
    _, _, lines = trained(small_run, tmp_path, num_iterations=2)
    assert ["eps_audit" in line for line in lines] == ["reward" in line for line in lines] == [True, False] * 2


def test_replayed_completions_are_whole_groups_of_the_last_generations_and_the_share_that_was_asked_for(
    small_run, tmp_path
):
    trainer, _, _ = trained(small_run, tmp_path, replay_share=0.4, replay_generations=2, max_steps=5)
    own = PROMPTS * GENERATIONS
    for step, (inputs, _) in enumerate(trainer.losses):
        drawn, group = inputs["drawn"], inputs["group"]
        replayed = drawn != step
        assert len(drawn) == own + (8 if step else 0)  # 8 of 20 are 0.4
        assert set(drawn[replayed].tolist()) <= {step - 1, step - 2} - {-1}
        assert all((group == g).sum() == GENERATIONS for g in group.tolist())


def test_a_generation_is_given_up_once_its_effective_share_is_too_small_and_nothing_moves_meanwhile(
    small_run, tmp_path
):
    trainer, policies, lines = trained(small_run, tmp_path, num_iterations=3, max_steps=6, min_ess=0.95)
    skipped = [line["reuse/skipped"] for line in lines]
    # Step 2 finds a share below the bound and is taken; step 3 is not; step 4 draws again.
    assert skipped == [0, 0, 1] * 2
    assert all(lines[i]["reuse/ess"] < 0.95 for i in (1, 4)) and lines[3]["reuse/ess"] == 1
    assert [len({*i["drawn"].tolist()}) for i, _ in trainer.losses] == [1] * 4
    assert [i["drawn"][0].item() for i, _ in trainer.losses] == [0, 0, 3, 3]
    after_second, after_skipped = policies.before[2], policies.before[3]
    for name, weight in after_second.named_parameters():
        assert torch.equal(weight, after_skipped.get_parameter(name)), name
    assert all(torch.equal(a, b) for a, b in zip(policies.moments[1], policies.moments[2], strict=True))
    assert lines[2]["loss"] == lines[2]["grad_norm"] == 0 and "residual/mean" not in lines[2]


def test_a_replayed_generation_is_forgotten_once_its_effective_share_is_too_small(small_run, tmp_path):
    trainer, _, _ = trained(small_run, tmp_path, replay_share=0.4, min_ess=0.999)
    stale = [sum(d != step for d in i["drawn"].tolist()) for step, (i, _) in enumerate(trainer.losses)]
    # After one step no generation's weights are that equal: each is replayed once.
    assert stale == [0, 8, 8, 8]
    drawn = [set(i["drawn"].tolist()) for i, _ in trainer.losses]
    assert drawn == [{0}, {0, 1}, {1, 2}, {2, 3}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_cap": 0.5}, "weight_cap=0.5, expected a number of at least 1"),
        ({"min_ess": 1.0}, r"min_ess=1.0, expected a number in \[0, 1\)"),
        ({"replay_share": 1.0}, r"replay_share=1.0, expected a number in \[0, 1\)"),
        ({"replay_generations": 0}, "replay_generations=0, expected at least 1"),
    ],
)
def test_settings_of_reuse_out_of_range_are_refused(small_run, tmp_path, changes, message):
    with pytest.raises(DisaError, match=message):
        small_run.config(tmp_path, **changes)
