"""From verl's DataProto to its actor loss: the sum of its pieces is the frozen residual of disa.objectives."""

import importlib.util

import numpy as np
import pytest
import torch

if importlib.util.find_spec("verl") is None:  # anything else that is missing is an error
    pytest.skip("needs verl 0.9.1: make test-verl", allow_module_level=True)

from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.core_algos import (
    ADV_ESTIMATOR_REGISTRY,
    POLICY_LOSS_REGISTRY,
    FixedKLController,
    get_adv_estimator_fn,
    get_policy_loss_fn,
)
from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage
from verl.utils import tensordict_utils as tu
from verl.workers.config.actor import ActorConfig, PolicyLossConfig
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import response_to_nested

from disa.errors import DisaError
from disa.objectives.trajectory_balance import (
    anchored_baseline,
    trajectory_balance_loss,
    trajectory_balance_residual,
)
from disa.verl import plugin

BETA, PROMPTS, GROUP = 3.0, 3, 4
ROWS = PROMPTS * GROUP
# verl keeps token scores in float32: one rounding of a number below 16 nats is at most 2^-21 = 4.8e-7, and two of them
# meet in the residual. The squares compared here are of order 10.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


class Batch:
    """A batch of completions as verl's trainer holds it, and the same numbers for disa.objectives."""

    def __init__(self, seed=0, *, undecided=(), padding=0):
        rng = np.random.default_rng(seed)
        self.rows, self.padding = ROWS, padding
        self.lengths = rng.integers(1, 9, ROWS).tolist() + [1] * padding
        self.prompt_lengths = rng.integers(1, 6, ROWS).tolist() + [1] * padding
        self.reward = torch.tensor(rng.integers(0, 2, ROWS), dtype=torch.float64)
        self.reward[list(undecided)] = torch.nan
        self.log_z = torch.tensor(rng.uniform(0, BETA, PROMPTS).repeat(GROUP))
        self.group = torch.arange(PROMPTS).repeat_interleave(GROUP)
        ragged = [[-rng.exponential(1.0, n) for n in self.lengths] for _ in range(3)]
        self.now, self.old, self.ref = [[torch.tensor(v, dtype=torch.float32) for v in part] for part in ragged]
        masks = [torch.ones(n, dtype=torch.int64) for n in self.lengths[:ROWS]]
        self.masks = masks + [torch.zeros(1, dtype=torch.int64)] * padding
        uid = [f"prompt{g}" for g in self.group.tolist()] + ["padding"] * padding
        self.uid = np.array(uid, dtype=object)

    def advantages(self, prior_strength, due=None):
        """verl's own steps: score at the last token, KL into the reward, advantage estimator."""
        scores = torch.zeros(self.rows + self.padding, max(self.lengths))
        for i in range(self.rows):
            scores[i, self.lengths[i] - 1] = float(BETA * self.reward[i] - self.log_z[i])
        tensors = {"token_level_scores": scores, "response_mask": padded(self.masks)}
        tensors |= {"old_log_probs": padded(self.old), "ref_log_prob": padded(self.ref)}
        data = DataProto.from_dict(tensors=tensors, non_tensors={"uid": self.uid})
        data, _ = apply_kl_penalty(data, FixedKLController(1.0), kl_penalty="kl")
        config = {
            "disa": {"baseline_prior_strength": prior_strength, "prompts": 1, "completions_per_prompt": due or ROWS}
        }
        return compute_advantage(data, adv_estimator="disa", config=config).batch["advantages"]

    def mini_batch(self, prior_strength):
        """What verl's worker gets: nested tensors, with positions that carry each row's number."""
        masks = nested(self.masks)
        sequences = [torch.arange(p + n) for p, n in zip(self.prompt_lengths, self.lengths, strict=True)]
        fields = {
            "prompts": nested([s[:p] for s, p in zip(sequences, self.prompt_lengths, strict=True)]),
            "responses": nested([s[p:] for s, p in zip(sequences, self.prompt_lengths, strict=True)]),
            "input_ids": nested(sequences),
            "response_mask": masks,
            "loss_mask": masks,
            "old_log_probs": nested(self.old),
            "advantages": response_to_nested(self.advantages(prior_strength), masks),
            "row": torch.arange(self.rows + self.padding),
        }
        return TensorDict(fields, batch_size=self.rows + self.padding)

    def residual(self, log_pi):
        log_ref = torch.stack([v.double().sum() for v in self.ref[:ROWS]])
        return trajectory_balance_residual(log_pi, log_ref, self.reward, self.log_z, beta=BETA)

    def expected(self, now, prior_strength):
        """The loss of disa.objectives, with the baseline of the residuals at sampling time."""
        sums = [torch.stack([v.double().sum() for v in rows[:ROWS]]) for rows in (now, self.old)]
        delta, at_sampling = (self.residual(log_pi) for log_pi in sums)
        decided = ~delta.isnan()
        baseline = None
        if prior_strength is not None:
            baseline = anchored_baseline(at_sampling[decided], self.group[decided], prior_strength=prior_strength)
        # verl divides by the size of the whole batch, undecided rows included.
        return trajectory_balance_loss(delta[decided], baseline) * decided.sum() / ROWS


def test_completions_that_verl_lost_stop_the_step():
    batch = Batch(0, padding=2)
    with pytest.raises(DisaError, match=f"2 of the step's {ROWS + 2} completions are missing"):
        batch.advantages(1.0, due=ROWS + 2)
    assert batch.advantages(1.0).shape[0] == ROWS + 2


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def nested(rows):
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def verl_loss(now, data, *, dp_size=1, global_batch_size=ROWS, **changes):
    """verl's actor loss of one micro-batch, from token log-probabilities of all rows."""
    settings = {"strategy": "fsdp", "rollout_n": GROUP, "ppo_micro_batch_size_per_gpu": 1}
    settings |= {"loss_agg_mode": "seq-mean-token-sum", "policy_loss": PolicyLossConfig(loss_mode="disa")}
    config = ActorConfig(**settings | changes)
    # A model's output has one value per token of the whole sequence, shifted left by one.
    prompt_lengths = data["prompts"].offsets().diff().tolist()
    rows = [now[row] for row in data["row"].tolist()]
    sequences = [torch.cat([torch.zeros(p - 1), v, torch.zeros(1)]) for p, v in zip(prompt_lengths, rows, strict=True)]
    data = data.copy()
    # tokens of the batch: verl counts them over all processes, and this loss must not depend on them
    tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=12345, global_batch_size=global_batch_size)
    return ppo_loss(config, {"log_probs": torch.cat(sequences)}, data)


def with_gradient(rows):
    return [v.clone().requires_grad_() for v in rows]


def gradient(rows):
    return torch.cat([torch.zeros_like(v) if v.grad is None else v.grad for v in rows])


def test_verl_finds_the_plugin_through_its_entry_point_and_knows_both_names():
    # conftest imported verl with the entry points of pyproject.toml, and nothing of disa before it.
    assert get_policy_loss_fn("disa") is POLICY_LOSS_REGISTRY["disa"] is plugin.frozen_log_z_loss
    assert get_adv_estimator_fn("disa") is ADV_ESTIMATOR_REGISTRY["disa"] is plugin.residual_advantage


@pytest.mark.parametrize("prior_strength", [None, 0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_those_of_disa_objectives(prior_strength, seed):
    batch = Batch(seed)
    ours, theirs = with_gradient(batch.now), with_gradient(batch.now)
    expected = batch.expected(ours, prior_strength)
    found, metrics = verl_loss(theirs, batch.mini_batch(prior_strength))
    torch.testing.assert_close(found, expected, **CLOSE)
    expected.backward(), found.backward()
    # Token log-probabilities are float32, so their gradients are: relative rounding 6e-8, times sums of a few.
    torch.testing.assert_close(gradient(theirs), gradient(ours), **CLOSE)
    assert metrics["actor/pg_loss"].aggregate() == pytest.approx(expected.item(), rel=1e-6)


def test_the_log_probabilities_of_sampling_time_cancel():
    # Whatever engine measured them: without a baseline they are in the advantage and in the loss, and leave no trace.
    one, other = Batch(0), Batch(0)
    other.old = [v - 0.25 for v in one.old]
    found = [verl_loss(b.now, b.mini_batch(None))[0] for b in (one, other)]
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    assert found[0] > 0.1


def test_on_policy_loss_is_the_trainers_squared_residual():
    batch = Batch(3)
    batch.now = batch.old
    found, metrics = verl_loss(batch.now, batch.mini_batch(None))
    delta = batch.residual(torch.stack([v.double().sum() for v in batch.now]))
    torch.testing.assert_close(found, delta.square().mean(), **CLOSE)
    assert metrics["disa/loss_residual_mean"].aggregate() == pytest.approx(delta.mean().item(), abs=1e-6)


@pytest.mark.parametrize("tokens", [14, 25, 60])
def test_dynamic_micro_batches_add_up_to_the_loss_of_the_whole_batch(tokens):
    batch = Batch(4)
    whole, parts = with_gradient(batch.now), with_gradient(batch.now)
    expected, _ = verl_loss(whole, batch.mini_batch(1.0))
    data = batch.mini_batch(1.0)
    tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=tokens)
    micro_batches, _ = prepare_micro_batches(data)
    sizes = [len(m) for m in micro_batches]
    assert len(sizes) > 1 and sum(sizes) == ROWS
    losses = [verl_loss(parts, micro_batch)[0] for micro_batch in micro_batches]
    # The same double-precision terms in another order.
    torch.testing.assert_close(sum(losses), expected, rtol=1e-12, atol=0)
    expected.backward(), sum(losses).backward()
    torch.testing.assert_close(gradient(parts), gradient(whole), rtol=1e-6, atol=1e-7)


def test_two_processes_average_to_the_loss_of_the_whole_batch():
    batch = Batch(5)
    data = batch.mini_batch(1.0)
    expected, _ = verl_loss(batch.now, data)
    halves = tu.chunk_tensordict(data, 2)
    found = [verl_loss(batch.now, half, dp_size=2)[0] for half in halves]
    torch.testing.assert_close(sum(found) / 2, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("prior_strength", [None, 1.0])
def test_padding_rows_change_neither_loss_nor_gradient(prior_strength):
    plain, longer = Batch(6), Batch(6, padding=4)
    # The rows that both have must be the same ones, whatever the generator drew for the others.
    longer.now[:ROWS], longer.old[:ROWS], longer.ref[:ROWS] = plain.now, plain.old, plain.ref
    ours, theirs = with_gradient(plain.now), with_gradient(longer.now)
    expected, _ = verl_loss(ours, plain.mini_batch(prior_strength))
    found, _ = verl_loss(theirs, longer.mini_batch(prior_strength))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    expected.backward(), found.backward()
    torch.testing.assert_close(gradient(theirs[:ROWS]), gradient(ours), rtol=0, atol=0)
    assert gradient(theirs[ROWS:]).abs().max() == 0


def test_a_micro_batch_of_padding_rows_alone_has_no_loss():
    batch = Batch(7, padding=2)
    rows = with_gradient(batch.now)
    found, _ = verl_loss(rows, tu.index_select_tensor_dict(batch.mini_batch(1.0), list(range(ROWS, ROWS + 2))))
    found.backward()
    assert found.item() == 0 and gradient(rows).abs().max() == 0


@pytest.mark.parametrize("prior_strength", [None, 1.0])
def test_undecided_completions_leave_loss_baseline_and_gradient(prior_strength):
    batch = Batch(8, undecided=(0, 5, 8, 9, 10, 11))  # of the last group nothing is left
    ours, theirs = with_gradient(batch.now), with_gradient(batch.now)
    expected = batch.expected(ours, prior_strength)
    found, _ = verl_loss(theirs, batch.mini_batch(prior_strength))
    torch.testing.assert_close(found, expected, **CLOSE)
    expected.backward(), found.backward()
    torch.testing.assert_close(gradient(theirs), gradient(ours), **CLOSE)
    assert gradient(theirs[8:]).abs().max() == 0 < gradient(theirs).abs().max()


def test_the_loss_refuses_other_aggregations_and_importance_weights():
    batch = Batch(9)
    data = batch.mini_batch(None)
    with pytest.raises(ValueError, match="seq-mean-token-sum.*'token-mean'"):
        verl_loss(batch.now, data, loss_agg_mode="token-mean")
    data["rollout_is_weights"] = nested([torch.ones(n) for n in batch.lengths])
    with pytest.raises(ValueError, match="no rollout_is_weights"):
        verl_loss(batch.now, data)
