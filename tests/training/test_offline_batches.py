"""The forward projection's batches: what they hold, how they are drawn, and that resuming repeats none."""

import math

import numpy as np
import pytest
import torch
from small_trainer import GENERATIONS, PROMPTS

from disa import DISATrainer
from disa.errors import DisaError
from disa.lm.loading import load_tokenizer
from disa.training.stored import StoredTrajectories
from disa.training.trajectory_weights import target_weights

CPU = torch.device("cpu")


def same(a, b):
    # log_z is NaN where none was given.
    return all(
        torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0))
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_a_batch_is_a_pure_function_of_seed_and_number(small_run):
    first, second, other = small_run.offline(), small_run.offline(), small_run.offline(seed=1)
    numbers = [3, 0, 3, 7]
    batches = [first.batch(n, 12, CPU, 0) for n in numbers]
    # Another object, asked in another order and after other batches, with torch's and numpy's streams moved on.
    torch.rand(5), np.random.rand(5)
    again = {n: second.batch(n, 12, CPU, 0) for n in sorted(numbers)}
    assert all(same(batch, again[n]) for n, batch in zip(numbers, batches, strict=True))
    assert not same(batches[0], batches[1])
    assert not same(batches[0], other.batch(3, 12, CPU, 0))


def test_rows_are_the_trajectories_padded_on_their_sides(small_run):
    tokenizer = load_tokenizer(small_run.reference)
    batch = small_run.offline().batch(0, 32, CPU, tokenizer.pad_token_id)
    texts = {p.prompt_id: p.prompt for p in small_run.prompts}
    known = {(texts[t.prompt_id], tuple(t.completion_ids)) for t in small_run.trajectories if t.prompt_id in texts}
    for prompt, prompt_mask, completion, mask in zip(
        batch.prompt_ids, batch.prompt_mask, batch.completion_ids, batch.completion_mask, strict=True
    ):
        assert (tokenizer.decode(prompt[prompt_mask.bool()]), tuple(completion[mask.bool()].tolist())) in known
        assert prompt_mask.tolist() == sorted(prompt_mask.tolist())
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert (prompt[~prompt_mask.bool()] == tokenizer.pad_token_id).all()
    assert batch.prompt_mask.sum(dim=1).max() == batch.prompt_ids.shape[1]
    assert batch.completion_mask.sum(dim=1).max() == batch.completion_ids.shape[1]


def test_weights_are_the_density_ratio_of_the_frozen_target_to_the_mixture_capped(small_run):
    offline = small_run.offline()
    prompts = {p.prompt_id for p in small_run.prompts}
    rows = [t for t in small_run.trajectories if t.prompt_id in prompts]
    for weight, row in zip(offline.weights.tolist(), rows, strict=True):
        group = [r for r in rows if r.prompt_id == row.prompt_id]
        share = sum(r.source == "reference" for r in group) / len(group)
        mixture = share * math.exp(row.log_ref) + (1 - share) * math.exp(row.log_proposal)
        beta, log_z = small_run.anchor.fingerprint.inverse_temperature, small_run.anchor.estimates[row.prompt_id].log_z
        expected = min(math.exp(row.log_ref) / mixture * math.exp(beta * row.reward - log_z), 8.0)
        assert weight == pytest.approx(expected, rel=1e-9)  # the same float64 arithmetic in another order
    assert offline.batch(0, 4, CPU, 0).weight.tolist() == pytest.approx([offline.weights.mean().item()] * 4)


def test_rows_are_drawn_in_proportion_to_their_weights(small_run):
    offline = small_run.offline()
    size, batches = 500, 40
    # Prompt and completion together name a row, but for equal draws of one prompt, which are counted together.
    expected, found = {}, {}
    for p, c, weight in zip(offline._prompt_of, offline._completion_ids, offline.weights, strict=True):
        key = (tuple(offline._prompt_ids[p]), tuple(c))
        expected[key] = expected.get(key, 0.0) + weight.item() / offline.weights.sum().item()
    for number in range(batches):
        batch = offline.batch(number, size, CPU, 0)
        for p, pm, c, cm in zip(
            batch.prompt_ids, batch.prompt_mask, batch.completion_ids, batch.completion_mask, strict=True
        ):
            key = (tuple(p[pm.bool()].tolist()), tuple(c[cm.bool()].tolist()))
            found[key] = found.get(key, 0) + 1
    n = size * batches
    for key, probability in expected.items():
        error = math.sqrt(probability * (1 - probability) / n)
        # Five standard errors over fewer than 100 rows: a false alarm once in 20,000 seeds, and the seed is fixed.
        assert abs(found.get(key, 0) / n - probability) < 5 * error


def test_the_cap_bounds_every_weight(small_run):
    prompts = {p.prompt_id for p in small_run.prompts}
    rows = [t for t in small_run.trajectories if t.prompt_id in prompts]
    free, capped = (target_weights(rows, small_run.anchor, cap=c) for c in (math.inf, 0.5))
    assert free.max() > 0.5
    torch.testing.assert_close(capped, free.clamp(max=0.5))


def test_no_trajectories_are_refused(small_run):
    with pytest.raises(DisaError, match="no offline trajectories.*Fix: run proposals and scoring"):
        StoredTrajectories([], {}, torch.empty(0), seed=0)


class Numbers(StoredTrajectories):
    """Notes which batches are asked for."""

    asked: list

    def batch(self, number, size, device, pad_token_id, **part):
        self.asked.append((number, size))
        return super().batch(number, size, device, pad_token_id, **part)


def test_every_step_and_micro_batch_gets_a_batch_of_its_own(small_run, tmp_path):
    offline = small_run.offline()
    offline.__class__, offline.asked = Numbers, []
    half = PROMPTS * GENERATIONS // 2
    trainer = small_run.trainer(
        tmp_path,
        parts={"offline": offline},
        max_steps=3,
        offline_share=0.25,
        per_device_train_batch_size=half,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert offline.asked == [(n, half) for n in range(6)]


class NoOffline(DISATrainer):
    """Reports the two parts of the objective instead of their mixture."""

    def _forward_projection(self, model, size):
        loss = super()._forward_projection(model, size)
        self.projection = loss.item()
        return loss


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_the_share_mixes_the_two_parts_twice_the_projection_against_the_residual(small_run, tmp_path, share):
    alone = small_run.trainer(tmp_path / "alone")
    alone.train()
    mixed = small_run.trainer(
        tmp_path / "mixed", trainer_class=NoOffline, parts={"offline": small_run.offline()}, offline_share=share
    )
    mixed.train()
    on_policy, both = (t.state.log_history[0] for t in (alone, mixed))
    # float32 losses of the same completions.
    assert both["loss"] == pytest.approx((1 - share) * on_policy["loss"] + share * 2 * mixed.projection, rel=1e-5)
    assert both["forward_projection"] == pytest.approx(mixed.projection)
    assert both["residual/mean"] == on_policy["residual/mean"]
