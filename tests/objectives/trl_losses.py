"""TRL's own loss code, run on given log-probabilities: an implementation independent of the one under test."""

import warnings
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import GRPOTrainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the experimental package announces itself
    from trl.experimental.a2po import A2POTrainer


def grpo_trainer_loss(
    token_log_pi, token_log_old, advantage, mask, *, loss_type, level, clip_low, clip_high, max_length=None
):
    """``GRPOTrainer._compute_loss`` of one batch; the model is replaced by the log-probabilities it would give."""
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (token_log_pi, torch.zeros_like(token_log_pi), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=0.0,
        loss_type=loss_type,
        epsilon_low=clip_low,
        epsilon_high=clip_high,
        args=SimpleNamespace(delta=None),
        use_vllm=False,
        model=SimpleNamespace(training=False),
        max_completion_length=max_length,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1),
        _metrics={"eval": defaultdict(list)},
    )
    prompt = torch.zeros(len(mask), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt + 1,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": advantage,
        "old_per_token_logps": token_log_old,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def a2po_trainer_loss(log_pi, log_ref, reward, value, *, beta2):
    """``A2POTrainer.compute_loss`` of one batch, the model replaced likewise."""
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        _get_sequence_logps=lambda *args: log_pi,
        args=SimpleNamespace(beta2=beta2),
        _metrics={"eval": defaultdict(list)},
    )
    inputs = {"input_ids": None, "attention_mask": None, "logits_to_keep": None}
    return A2POTrainer.compute_loss(trainer, None, inputs | {"ref_logps": log_ref, "rewards": reward, "v_star": value})
