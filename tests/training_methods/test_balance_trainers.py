"""Every source of log Z, end to end on a model whose target is known, and what each can and cannot learn from."""

import dataclasses
import inspect

import pytest
import torch
from method_oracle import BETA, SIZE, World, settings
from trl import GRPOTrainer

from disa.errors import DisaError
from disa.objectives.trajectory_balance import importance_weight
from disa.training.a_star_po import a_star_po, reference_values, unsolved_prompts
from disa.training.balance_trainer import BalanceTrainer
from disa.training.build import FLOWRL_PUBLISHED, GFLOWRL_PUBLISHED, build_trainer
from disa.training.disa_config import DISAConfig
from disa.training.learned_log_z import Learned, LogZHead
from disa.training.log_z import Frozen, Group, gflowrl_log_z
from disa.training.log_z_module import MODULE_FILE
from published_losses import a_star_po_loss, grpo_loss


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("oracle") / "reference")


def trained_by(world, tmp_path, log_z, **changes):
    return BalanceTrainer(log_z=log_z, args=DISAConfig(**settings(tmp_path, **changes)), **world.online())


def values(world):
    return dict(zip("0123", world.log_z, strict=True))


def frozen(world, tmp_path, **changes):
    return trained_by(world, tmp_path, Frozen(values(world)), baseline="none", **changes)


def flowrl(world, tmp_path, **changes):
    # The oracle's prompts are told apart only by the table's own rows, so the head learns fast or not at all.
    return trained_by(world, tmp_path, Learned(0.03), **changes)


def vargrad(world, tmp_path, **changes):
    return trained_by(world, tmp_path, Group(), **changes)


def gflow(world, tmp_path, published=False, clips=(None, None), **changes):
    log_z = gflowrl_log_z(clip_low=clips[0], clip_high=clips[1], sums=published)
    return trained_by(world, tmp_path, log_z, **changes | (GFLOWRL_PUBLISHED if published else {}))


def a2po(world, tmp_path, **changes):
    return trained_by(
        world, tmp_path, a_star_po(values(world), BETA), group=1, **{"per_device_train_batch_size": SIZE} | changes
    )


# Measured after 150 steps: 0.0007 and 0.0009 with frozen and group log Z, 0.012 with a head that still learns, 0.011
# from an eighth of the completions. Put in as faults, a beta 20% too small leaves 0.016, 0.02, 0.02 and 0.077, a
# forgotten reference 0.37 and more.
@pytest.mark.parametrize(
    ("build", "bound"), [(frozen, 0.005), (vargrad, 0.005), (gflow, 0.005), (flowrl, 0.016), (a2po, 0.03)]
)
def test_with_sums_every_source_of_log_z_leads_to_the_target(world, tmp_path, build, bound):
    trainer = build(world, tmp_path, steps=150)
    before = world.kl_to_target(trainer.model).mean()
    trainer.train()
    assert before > 0.25
    assert world.kl_to_target(trainer.model).mean() < bound


def test_a_star_pos_loss_is_that_of_its_function(world, tmp_path):
    trainer = a2po(world, tmp_path, steps=2, logging_steps=1)
    beta, compute, seen = trainer.args.inverse_temperature, trainer.compute_loss, []

    def recorded(model, inputs, **others):
        with torch.no_grad():
            log_pi, _ = trainer.sequence_log_probs(model, inputs)
            log_ref = (inputs["ref_per_token_logps"].double() * inputs["completion_mask"]).sum(dim=1)
            value, reward = inputs["log_z"].double() / beta, inputs["raw_reward"].double()
            seen.append(a_star_po_loss(log_pi, log_ref, reward, value, beta2=1 / beta).item())
        return compute(model, inputs, **others)

    trainer.compute_loss = recorded
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    # TRL's log keeps losses in float32, and the trainer scales the residual where the function scales its terms.
    assert losses == pytest.approx(seen, rel=1e-5)
    assert len(losses) == 2 and losses[0] != losses[1]


def test_gflowrl_with_sums_and_without_a_clip_is_vargrad_step_by_step(world, tmp_path):
    losses = []
    for build in (vargrad, gflow):
        trainer = build(world, tmp_path, steps=3, logging_steps=1)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1]
    assert min(losses[0]) > 0


def test_a_clip_lowers_gflowrls_loss_and_none_of_its_settings_may_be_negative(world, tmp_path):
    losses = []
    for clips in ((None, None), (0.1, 0.1)):
        trainer = gflow(world, tmp_path, steps=1, logging_steps=1, clips=clips)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] <= 0.1**2 < losses[0]
    with pytest.raises(DisaError, match="clip_low is -1"):
        gflowrl_log_z(clip_low=-1.0)


@pytest.mark.parametrize("build", [vargrad, gflow])
def test_group_log_z_is_the_same_whether_a_step_is_one_batch_or_many(world, tmp_path, build):
    first_losses = []
    for batch, accumulation in ((8 * SIZE, 1), (SIZE, 8)):
        trainer = build(
            world,
            tmp_path,
            steps=1,
            logging_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        first_losses.append(trainer.state.log_history[0]["loss"])
    # Groups are scattered over micro-batches; only float32 log-probabilities in other batch sizes differ.
    assert first_losses[0] == pytest.approx(first_losses[1], rel=1e-5)


def test_a_group_of_one_teaches_with_a_frozen_log_z_and_is_refused_where_log_z_is_the_groups(world, tmp_path):
    trainer = frozen(world, tmp_path, group=1, steps=150, per_device_train_batch_size=SIZE)
    before = world.kl_to_target(trainer.model).mean()
    trainer.train()
    assert world.kl_to_target(trainer.model).mean() < before / 5
    for build in (vargrad, gflow):
        with pytest.raises(DisaError, match="residual of a group of one is zero"):
            build(world, tmp_path, group=1)


def test_published_flowrl_refuses_groups_of_one_whose_normalised_rewards_are_zero(world, tmp_path):
    with pytest.raises(DisaError, match="num_generations=1: a reward normalised within a group of one.*Fix: "):
        trained_by(world, tmp_path, Learned(normalised_rewards=True), group=1)
    assert flowrl(world, tmp_path, group=1, per_device_train_batch_size=SIZE).args.num_generations == 1


def test_an_undecided_completion_carries_no_gradient(world, tmp_path):
    trainer = frozen(world, tmp_path, steps=1, logging_steps=1)
    trainer.reward_funcs = [lambda prompts, **_: [None] * len(prompts)]
    before = trainer.model.model.table.weight.detach().clone()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0.0
    assert torch.equal(trainer.model.model.table.weight, before)


def test_the_head_reads_the_whole_prompt_and_leaves_the_policys_gradient_alone(world, tmp_path):
    trainer = flowrl(world, tmp_path)
    # Any head that is not constant; the fresh one is zero everywhere.
    torch.nn.init.normal_(trainer.log_z.module.layers[-1].weight, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([world.tokenizer(p)["input_ids"] for p in "0123"])
    inputs = {"prompt_ids": ids, "prompt_mask": torch.ones_like(ids)}
    log_z = trainer.log_z.learned(trainer, trainer.model, inputs)
    assert len({round(z, 6) for z in log_z.tolist()}) == SIZE  # the digit is the prompt's last token
    log_z.sum().backward()
    assert trainer.model.model.table.weight.grad is None
    assert all(p.grad is not None for p in trainer.log_z.module.parameters())
    trainer.log_z.detach_backbone = False
    trainer.log_z.learned(trainer, trainer.model, inputs).sum().backward()
    assert trainer.model.model.table.weight.grad.abs().max() > 0


def test_the_head_has_no_dropout_and_starts_from_zero():
    head = LogZHead(5).train()
    assert not any(isinstance(module, torch.nn.Dropout) for module in head.modules())
    assert head(torch.randn(3, 5)).tolist() == [0.0] * 3


def test_the_head_has_its_own_parameter_group_and_learning_rate(world, tmp_path):
    trainer = flowrl(world, tmp_path)
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer  # asked twice, it is added once
    groups = [g for g in optimizer.param_groups if g["params"]]
    own = groups[-1]
    assert {id(p) for p in own["params"]} == {id(p) for p in trainer.log_z.module.parameters()}
    assert (own["lr"], own["weight_decay"]) == (0.03, 0.0)
    assert all(g["lr"] == 0.1 for g in groups[:-1])


def test_a_resumed_run_goes_on_with_the_head_it_had(world, tmp_path):
    trainer = flowrl(world, tmp_path, steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    saved = tmp_path / "checkpoint-2"
    assert (saved / MODULE_FILE).is_file()
    assert not any("layers" in name for name in trainer.model.state_dict())
    resumed = flowrl(world, tmp_path / "again", steps=4)
    resumed.train(resume_from_checkpoint=str(saved))
    # Random states are restored too, so a resumed run is an unbroken one.
    for a, b in zip(trainer.log_z.module.parameters(), resumed.log_z.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert resumed.log_z.module.layers[-1].bias.abs().item() > 0.05  # a fresh head is at zero


def test_published_flowrl_uses_means_normalised_rewards_beta_15_and_a_cap_of_10(world, tmp_path):
    trainer = build_trainer("flowrl_published", world.ingredients(tmp_path))
    args = trainer.args
    assert (args.inverse_temperature, args.length, args.weight_cap) == (15.0, "mean", 10.0)
    assert FLOWRL_PUBLISHED["inverse_temperature"] == args.inverse_temperature
    assert trainer.log_z.detach_backbone  # as in every column of docs/method/flowrl.md
    trainer.train()
    line = trainer.state.log_history[0]
    # log pi = log ref and log Z = 0 at the start: the loss is 225 E[A^2], and A has variance near (K-1)/K.
    assert line["loss"] == pytest.approx(225 * 7 / 8 * (1 - line["frac_reward_zero_std"]), rel=0.02)
    assert "eps_audit" not in line


def test_published_gflowrl_uses_beta_8_sums_in_log_z_and_means_in_the_residual(world, tmp_path):
    trainer = gflow(world, tmp_path, published=True, steps=1)
    assert (trainer.args.inverse_temperature, trainer.args.length) == (8.0, "mean")
    trainer.train()


def test_reused_completions_carry_a_capped_importance_weight(world, tmp_path, monkeypatch):
    ratios, weights = [], []

    def recorded(log_pi, log_sampler, *, cap):
        found = importance_weight(log_pi, log_sampler, cap=cap)
        ratios.append(torch.exp(log_pi - log_sampler).detach())
        weights.append(found)
        return found

    monkeypatch.setattr("disa.training.balance_trainer.importance_weight", recorded)
    cap = 1.2
    trainer = flowrl(world, tmp_path, steps=4, num_iterations=2, weight_cap=cap)
    trainer.train()
    # Completions are fresh in every other step and used again in the next, after the policy has moved.
    fresh, reused = torch.cat(weights[::2]), torch.cat(weights[1::2])
    assert len(weights) == 4
    torch.testing.assert_close(fresh, torch.ones_like(fresh), rtol=0, atol=1e-5)
    assert reused.max() == cap < torch.cat(ratios[1::2]).max()
    assert reused.min() < 0.9
    torch.testing.assert_close(reused, torch.cat(ratios[1::2]).clamp(max=cap), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inverse_temperature": -1.0}, "expected a number above 0"),
        ({"beta": 0.3}, "conflicts with inverse_temperature"),
        ({"length": "max"}, "expected 'sum' or 'mean'"),
        ({"top_k": 5}, "removes support"),
    ],
)
def test_settings_that_break_the_residual_are_refused(tmp_path, changes, message):
    with pytest.raises(DisaError, match=message):
        DISAConfig(**settings(tmp_path, per_device_train_batch_size=16) | changes)


def test_a_star_po_takes_sums_only_and_needs_a_value_for_every_prompt(world, tmp_path):
    with pytest.raises(DisaError, match="expected 'sum'"):
        a2po(world, tmp_path, length="mean")
    with pytest.raises(DisaError, match="no log Z for prompt 1"):
        trained_by(world, tmp_path, a_star_po({"0": 0.1}, BETA), group=1)


@pytest.mark.parametrize("name", ["baseline", "baseline_prior_strength", "offline_share", "flagged"])
def test_a_setting_of_a_frozen_log_z_is_refused_where_log_z_is_not_frozen(world, tmp_path, name):
    value = {"baseline": "none", "baseline_prior_strength": 2.0, "offline_share": 0.5, "flagged": "skip"}[name]
    with pytest.raises(DisaError, match=f"{name}=.* belongs to a frozen log Z|offline trajectories are missing"):
        vargrad(world, tmp_path, **{name: value})


def test_a_star_values_come_from_the_first_reference_samples_alone(world):
    rows = world.trajectories(40, reference_share=0.5)
    values = reference_values(rows, inverse_temperature=BETA, n=8)
    for prompt_id in "0123":
        rewards = [r.reward for r in rows if r.prompt_id == prompt_id and r.source == "reference"][:8]
        expected = torch.log(torch.exp(BETA * torch.tensor(rewards, dtype=torch.float64)).mean())
        assert values[prompt_id] == pytest.approx(expected.item(), abs=1e-12)
    assert unsolved_prompts(rows, n=8) == {p for p, v in values.items() if abs(v) < 1e-9}
    with pytest.raises(DisaError, match="its value needs 21"):
        reference_values(rows, inverse_temperature=BETA, n=21)


@pytest.mark.parametrize(
    ("method", "settings_of_the_loss"),
    [("grpo", ("dapo", "token", 0.2, 0.2)), ("gspo", ("grpo", "sequence", 3e-4, 4e-4))],
)
def test_grpo_and_gspo_train_with_trls_loss_under_the_settings_that_are_documented(
    world, tmp_path, method, settings_of_the_loss
):
    trainer = build_trainer(method, world.ingredients(tmp_path))
    found = (trainer.loss_type, trainer.importance_sampling_level, trainer.epsilon_low, trainer.epsilon_high)
    assert found == settings_of_the_loss
    assert (trainer.beta, trainer.num_iterations, trainer.scale_rewards) == (0.0, 1, "group")
    assert type(trainer).compute_loss is GRPOTrainer.compute_loss  # TRL's own


def test_the_loss_that_grpo_trains_with_is_that_of_its_function(world, tmp_path):
    parts = world.ingredients(tmp_path)
    # Two micro-batches: the tokens that the loss is divided by are those of the whole step.
    halves = {"per_device_train_batch_size": 2 * SIZE * 2, "gradient_accumulation_steps": 2}
    trainer = build_trainer("grpo", dataclasses.replace(parts, arguments=parts.arguments | halves))
    compute, seen = trainer.compute_loss, []

    def recorded(model, inputs, **others):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        kept = inputs["completion_mask"].size(1)
        with torch.no_grad():
            log_pi, *_ = trainer._get_per_token_logps_and_entropies(model, ids, mask, kept)
        seen.append((log_pi, inputs["advantages"], inputs["completion_mask"]))
        return compute(model, inputs, **others)

    trainer.compute_loss = recorded
    trainer.train()
    log_pi, advantage, mask = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(seen) == 2 and len(set(mask.sum(dim=1).tolist())) > 1
    by_length = {
        length: grpo_loss(log_pi, log_pi, advantage, mask, length=length).item() for length in ("batch", "mean")
    }
    # Float32 sums of 32 completions.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(by_length["batch"], abs=1e-5)
    assert abs(by_length["batch"] - by_length["mean"]) > 1e-3


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_calculate_rewards", ["inputs", "prompts", "completions", "completion_ids_list"]),
        ("_generate_and_score_completions", ["inputs"]),
        ("compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("log", ["logs", "start_time"]),
        ("create_optimizer", ["model"]),
        ("_save_optimizer_and_scheduler", ["output_dir"]),
        ("_load_optimizer_and_scheduler", ["checkpoint"]),
    ],
)
def test_the_engines_methods_that_are_overridden_still_have_their_signatures(name, parameters):
    found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    assert found == ["self", *parameters]
