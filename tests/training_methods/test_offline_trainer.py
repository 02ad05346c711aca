"""Training on stored trajectories alone, against exact distributions of the enumerable model."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from method_oracle import BETA, IDS, SIZE, World, training
from peft import LoraConfig
from transformers import Trainer

from disa.errors import DisaError
from disa.lm.digests import weights_digest
from disa.runs.records import ScoredTrajectory
from disa.testing import kl, total_variation
from disa.training.offline_trainer import (
    OfflineConfig,
    OfflineTrainer,
    balance_batch_loss,
    conservative_log_z,
    forward_loss,
    supervised_batch_loss,
)
from disa.training.stored import StoredTrajectories
from disa.training.trajectory_weights import equal_prompts, supervised_weights, target_weights

PER_PROMPT = 2000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("oracle") / "reference")


@pytest.fixture(scope="module")
def rows(world):
    return world.trajectories(PER_PROMPT)


def trainer(world, output_dir, stored, loss, *, steps=120, **changes):
    args = OfflineConfig(**training(output_dir, steps=steps, batch=256, **changes))
    return OfflineTrainer(args=args, trajectories=stored, loss=loss, **world.shared())


def by_completion(world, rows, values):
    """Sum of a value over the rows of each (prompt, completion)."""
    table = np.zeros((SIZE, world.space.completions))
    for row, value in zip(rows, values, strict=True):
        table[int(row.prompt_id), world.space.number(row.completion_ids)] += float(value)
    return table


def test_the_forward_projection_reaches_the_target_without_drawing_a_completion(world, rows, tmp_path):
    stored = StoredTrajectories(rows, world.prompt_ids(), target_weights(rows, world.anchor()), seed=0)
    run = trainer(world, tmp_path, stored, forward_loss)
    before = kl(world.target, world.policy(run.model)).mean()
    run.train()
    after = kl(world.target, world.policy(run.model)).mean()
    assert before > 0.2
    # 0.006 is left of 0.37. Put in as faults, weights without the importance ratio leave 0.38, without the reward 0.39.
    assert after < 0.015


def test_supervised_training_ends_at_the_kept_trajectories_and_not_at_the_target(world, rows, tmp_path):
    weights = supervised_weights(rows, "correct")
    stored = StoredTrajectories(rows, world.prompt_ids(), weights, seed=0)
    run = trainer(world, tmp_path, stored, supervised_batch_loss("sum"))
    run.train()
    kept = by_completion(world, rows, weights)
    kept /= kept.sum(axis=1, keepdims=True)
    found = np.exp(world.policy(run.model))
    # At most 0.03 from what was kept, which a softmax approaches but never reaches; 0.31 from the target on average.
    assert (0.5 * np.abs(found - kept).sum(axis=1)).max() < 0.06
    assert total_variation(world.policy(run.model), world.target).mean() > 0.2


def test_the_squared_residual_on_trajectories_of_full_support_keeps_within_the_envelope_and_warns(
    world, rows, tmp_path
):
    uniform = torch.ones(len(rows), dtype=torch.float64)
    with pytest.warns(UserWarning, match="leaks"):
        loss = balance_batch_loss(BETA)
    for eps in (-0.5, 0.5):
        log_z = torch.tensor([world.log_z[int(r.prompt_id)] + eps for r in rows])
        stored = StoredTrajectories(rows, world.prompt_ids(), uniform, seed=0, log_z=log_z)
        run = trainer(world, tmp_path, stored, loss)
        run.train()
        # 0.07 and 0.35 against 0.39: overestimation is the side on which the envelope is nearly used up.
        tv = total_variation(world.policy(run.model), world.target)
        assert tv.max() < 1 - np.exp(-abs(eps))
        assert (tv.max() > 0.2) == (eps > 0)


def test_the_conservative_log_z_is_the_lower_end_of_the_interval(world):
    found = conservative_log_z(world.anchor(), ["1", "0", "1"])
    assert found.tolist() == pytest.approx([world.log_z[i] - 0.3 for i in (1, 0, 1)])
    with pytest.raises(DisaError, match="no log Z for prompt 9"):
        conservative_log_z(world.anchor(), ["9"])


def test_log_probabilities_are_those_of_the_table(world, rows, tmp_path):
    stored = StoredTrajectories(rows, world.prompt_ids(), torch.ones(len(rows), dtype=torch.float64), seed=0)
    run = trainer(world, tmp_path, stored, forward_loss, steps=1)
    batch = stored.batch(0, 64, "cpu", world.tokenizer.pad_token_id)
    found = run.sequence_log_probs(run.model, batch)
    # The policy is still the reference; its float32 passes round at 1e-7 a token.
    torch.testing.assert_close(found, batch.log_ref, rtol=0, atol=1e-5)


def test_temperature_divides_the_logits(world, rows, tmp_path):
    stored = StoredTrajectories(rows, world.prompt_ids(), torch.ones(len(rows), dtype=torch.float64), seed=0)
    run = trainer(world, tmp_path, stored, forward_loss, steps=1, temperature=2.0)
    batch = stored.batch(0, 64, "cpu", world.tokenizer.pad_token_id)
    with torch.no_grad():
        hot = run.sequence_log_probs(run.model, batch)
        run.model.model.table.weight /= 2
        run.args.temperature = 1.0
        halved = run.sequence_log_probs(run.model, batch)
    torch.testing.assert_close(hot, halved, rtol=0, atol=1e-5)
    assert (hot - batch.log_ref).abs().max() > 0.1


def test_accumulated_micro_batches_have_the_mean_of_their_losses(world, rows, tmp_path):
    stored = StoredTrajectories(rows, world.prompt_ids(), torch.ones(len(rows), dtype=torch.float64), seed=0)
    run = trainer(
        world, tmp_path, stored, forward_loss, steps=1, per_device_train_batch_size=64, gradient_accumulation_steps=4,
        logging_steps=1,
    )  # fmt: skip
    run.train()
    expected = np.mean([-stored.batch(n, 64, "cpu", 0).log_ref.mean().item() for n in range(4)])
    assert run.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_ends_where_an_unbroken_one_does(world, rows, tmp_path):
    weights = target_weights(rows, world.anchor())
    ends = []
    for resume in (False, True):
        stored = StoredTrajectories(rows, world.prompt_ids(), weights, seed=0)
        run = trainer(world, tmp_path, stored, forward_loss, steps=6, save_strategy="steps", save_steps=3)
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        ends.append(run.model.model.table.weight.detach())
    assert torch.equal(*ends)


def test_adapters_alone_are_trained_where_asked_for(model, tokenizer, tmp_path):
    # The enumerable table has no linear layer to adapt; a tiny Llama has.
    row = ScoredTrajectory("p", 0, "reference", "", [3, tokenizer.eos_token_id], False, -1.0, -1.0, -1.0, 1.0)
    stored = StoredTrajectories([row], {"p": [4, 5]}, torch.ones(1, dtype=torch.float64), seed=0)
    args = OfflineConfig(**training(tmp_path, steps=1, batch=2))
    adapters = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    before = weights_digest(model)
    run = OfflineTrainer(
        model.requires_grad_(True),
        args,
        stored,
        supervised_batch_loss("mean"),
        processing_class=tokenizer,
        peft_config=adapters,
    )
    run.train()
    moved = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert moved and all("lora_" in name for name in moved)
    assert weights_digest(run.model) == before


def test_batches_are_drawn_in_proportion_to_the_weight_and_follow_from_seed_and_number(world, rows):
    weights = target_weights(rows, world.anchor())
    stored = StoredTrajectories(rows, world.prompt_ids(), weights, seed=3)
    batch = stored.batch(7, 4000, "cpu", 9)
    again = StoredTrajectories(rows, world.prompt_ids(), weights, seed=3).batch(7, 4000, "cpu", 9)
    assert torch.equal(batch.completion_ids, again.completion_ids)
    assert not torch.equal(batch.completion_ids, stored.batch(8, 4000, "cpu", 9).completion_ids)
    # The mean reward of weighted draws is the weighted mean reward, up to four standard errors of 4,000 draws.
    reward = torch.tensor([r.reward for r in rows], dtype=torch.float64)
    expected = (weights * reward).sum() / weights.sum()
    assert batch.reward.mean() == pytest.approx(expected.item(), abs=4 * 0.5 / 4000**0.5)
    assert batch.weight.unique().tolist() == pytest.approx([weights.mean().item()])
    assert batch.log_z.isnan().all()


def test_trajectories_without_rows_or_without_weight_are_refused(world, rows):
    with pytest.raises(DisaError, match="no offline trajectories"):
        StoredTrajectories([], {}, torch.empty(0), seed=0)
    with pytest.raises(DisaError, match="no completion was rewarded"):
        StoredTrajectories(rows[:2], world.prompt_ids(), torch.zeros(2), seed=0)


def test_weights_towards_the_target_have_mean_one_and_the_targets_expectations(world, rows):
    weights = target_weights(rows, world.anchor()).numpy()
    table = by_completion(world, rows, weights) / PER_PROMPT
    # Means of 2,000 weights below 4 exp(2) / Z: four standard errors are below 0.15.
    assert np.abs(table.sum(axis=1) - 1).max() < 0.15
    assert (0.5 * np.abs(table / table.sum(axis=1, keepdims=True) - np.exp(world.target)).sum(axis=1)).max() < 0.1


def test_a_prompt_counts_once_however_many_trajectories_it_has(world, rows):
    # Equally many, as every budget but an adaptive one has them: nothing changes, to the bit.
    assert equal_prompts(rows).eq(1.0).all()
    uneven = [row for row in rows if row.prompt_id != "0" or row.draw < 100]
    shares = by_completion(world, uneven, equal_prompts(uneven)).sum(axis=1)
    # Sums of thousands of floats.
    assert len(uneven) < len(rows) and shares == pytest.approx(len(uneven) / SIZE, rel=1e-10)


def test_the_cap_bounds_every_weight_and_changes_no_smaller_one(world, rows):
    free, capped = target_weights(rows, world.anchor()), target_weights(rows, world.anchor(), cap=1.5)
    assert free.max() > 1.5
    torch.testing.assert_close(capped, free.clamp(max=1.5))


def test_pareto_smoothing_changes_each_prompts_tail_alone_and_exceeds_no_raw_weight(world):
    rows = world.trajectories(200, reference_share=0.0)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    raw, smooth = (target_weights(shuffled, world.anchor(), tail=tail).numpy() for tail in ("cap", "pareto"))
    prompt = np.array([r.prompt_id for r in shuffled])
    changed = ~np.isclose(raw, smooth, rtol=1e-9)
    for p in IDS:
        mine = prompt == p
        tail = np.sort(raw[mine])[-40:]  # a fifth of 200 draws
        assert smooth[mine].max() <= raw[mine].max() * (1 + 1e-12)
        assert (raw[mine & changed] >= tail[0] * (1 - 1e-12)).all()
    assert changed.any()


def test_supervised_weights_are_correctness_or_reward_and_refuse_negative_rewards():
    rows = [SimpleNamespace(reward=r) for r in (0.0, 0.5, 1.0)]
    assert supervised_weights(rows, "correct").tolist() == [0.0, 0.0, 1.0]
    assert supervised_weights(rows, "reward").tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(DisaError, match="reward -1 is negative"):
        supervised_weights([SimpleNamespace(reward=-1.0)], "reward")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("_get_train_sampler", ["train_dataset"]),
    ],
)
def test_the_engines_methods_that_are_overridden_still_have_their_signatures(name, parameters):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == ["self", *parameters]


def test_the_mean_over_tokens_gives_every_process_the_weight_of_its_tokens():
    log_pi, mask = torch.tensor([-3.0, -5.0]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    # Of two processes with 20 tokens together: 10 per process.
    batch = SimpleNamespace(completion_mask=mask, tool_mask=mask, tokens=torch.tensor([10.0, 10.0]))
    assert supervised_batch_loss("mean")(log_pi, batch).item() == pytest.approx(8 / 5 * 5 / 10)
    assert supervised_batch_loss("sum")(log_pi, batch).item() == pytest.approx(8 / 2)
