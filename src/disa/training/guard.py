"""The general guard of a frozen log Z: whatever went wrong, log pi_ref as training computes it is the anchor's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from trl.trainer.utils import use_adapter

from disa.anchor import Anchor
from disa.anchor.probes import take_probes
from disa.errors import DisaError
from disa.lm.digests import weights_digest
from disa.training.stored import StoredTrajectories, padded_ids

if TYPE_CHECKING:
    from disa.training.balance_trainer import BalanceTrainer
    from disa.training.offline_trainer import OfflineTrainer

_log = logging.getLogger(__name__)

BFLOAT16_BOUND = 0.02
"""Nats per token, mean over the probes, where training computes in bfloat16: that of the parity check."""


class ReferenceGuard(TrainerCallback):
    """Tries the reference on the anchor's probes when training starts or resumes; digests it at every checkpoint."""

    def __init__(self, trainer: BalanceTrainer, anchor: Anchor, prompt_ids: Mapping[str, Sequence[int]]) -> None:
        self._trainer, self._anchor = trainer, anchor
        known = [p for p in anchor.probes.values() if p.prompt_id in prompt_ids]
        if not any(p.completion_ids for p in known) and anchor.run is not None:
            # Few prompts of many are trained on, none of which has a probe: their stored trajectories serve as well.
            known = take_probes(prompt_ids, anchor.trajectories(thin=True))
        tried = [(p, p.completion_ids) for p in known if p.completion_ids]
        if not tried:
            _log.warning(
                "training: the anchor has no trajectory of these prompts to try the reference on; its digest and the "
                "prompts' digests alone say that nothing changed"
            )
        self._log_ref = torch.tensor([p.log_ref for p, _ in tried], dtype=torch.float64)
        self._ids = [(prompt_ids[p.prompt_id], ids) for p, ids in tried]
        self._own = [p.tool_mask or [1] * len(ids) for p, ids in tried]
        self._tokens = torch.tensor([sum(own) for own in self._own])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare log pi_ref with the anchor's, and log pi in training with that in sampling."""
        if not self._ids:
            return
        log_pi, log_ref = self._log_probs()
        self._refuse(
            log_ref - self._log_ref,
            "log pi_ref of the anchor's own trajectories",
            "the reference, its adapters, or the prompts are not those of the anchor: train from the reference that "
            "log Z was estimated for",
        )
        self._refuse(
            log_pi["train"] - log_pi["eval"],
            "log pi in training mode, against sampling's,",
            "something random is on in training (dropout, noise): switch it off",
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the reference's digest again."""
        found, expected = weights_digest(self._trainer.reference_model), self._anchor.fingerprint.reference
        if found != expected:
            raise DisaError(
                f"the reference changed in training: its digest is {found}, the anchor was estimated for {expected}",
                where=f"step {state.global_step}",
                fix="find what trains it (adapters with biases, shared weights, a callback) and start again",
            )

    on_train_end = on_save

    def _refuse(self, difference: torch.Tensor, what: str, fix: str) -> None:
        bound = max(self._anchor.probe_bound, BFLOAT16_BOUND if self._trainer.args.bf16 else 0.0)
        _refuse(difference, self._tokens, bound, what, where="DISATrainer", fix=fix)

    @torch.no_grad()
    def _log_probs(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Log pi of the probes in either mode and log pi_ref, each as the trainer's steps compute it."""
        trainer = self._trainer
        prompts, completions = zip(*self._ids, strict=True)
        pad, device = trainer._tokenizer.pad_token_id, trainer.accelerator.device
        batch = padded_ids(prompts, completions, self._own, pad, device)
        model, training = trainer.model, trainer.model.training
        log_pi = {}
        for mode in ("eval", "train"):
            model.train(mode == "train")
            log_pi[mode] = trainer.sequence_log_probs(model, batch)[0].cpu()
        if trainer.ref_model is not None:
            log_ref, _ = trainer.sequence_log_probs(trainer.ref_model, batch)
        else:
            adapted = trainer.accelerator.unwrap_model(model)
            with use_adapter(adapted, "ref" if "ref" in adapted.peft_config else None):
                log_ref, _ = trainer.sequence_log_probs(model, batch)
        model.train(training)
        return log_pi, log_ref.cpu()


class StartGuard(TrainerCallback):
    """Tries a policy that starts at the reference on stored trajectories, before its first step.

    ``bound`` is the anchor's, nats per token (:attr:`disa.anchor.Anchor.probe_bound`).
    """

    def __init__(self, trainer: OfflineTrainer, stored: StoredTrajectories, bound: float) -> None:
        self._trainer, self._stored, self._bound = trainer, stored, bound

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare log pi in training mode with the stored log pi_ref; a resumed policy has moved."""
        if state.global_step:
            return
        trainer = self._trainer
        batch = self._stored.batch(0, args.per_device_train_batch_size, args.device, trainer.pad_token_id)
        training = trainer.model.training
        trainer.model.train()
        log_pi = trainer.sequence_log_probs(trainer.model, batch)
        trainer.model.train(training)
        _refuse(
            (log_pi - batch.log_ref).cpu(),
            batch.tool_mask.sum(dim=1).cpu(),
            max(self._bound, BFLOAT16_BOUND if args.bf16 else 0.0),
            "log pi of the policy before its first step, against the stored log pi_ref,",
            where="training",
            fix="start from the reference, with its prompts and without dropout",
        )


def _refuse(difference: torch.Tensor, tokens: torch.Tensor, bound: float, what: str, *, where: str, fix: str) -> None:
    """Refuse differences of sums that come to more than ``bound`` nats per token."""
    found = float((difference.abs() / tokens).mean())
    if not found <= bound:
        raise DisaError(
            f"{what} is off by {found:.2g} nats per token (mean of {len(difference)}; largest sum "
            f"{float(difference.abs().max()):.2g}), bound {bound:.2g}",
            where=where,
            fix=fix,
        )
