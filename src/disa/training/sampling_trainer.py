"""GRPO's trainer under the project's sampling law."""

from __future__ import annotations

from typing import Any

from trl import GRPOConfig, GRPOTrainer

from disa.lm.loading import without_own_defaults
from disa.training.rollouts import check_gap, policy_precision


class SamplingTrainer(GRPOTrainer):
    """Samples by its arguments alone.

    Whatever they leave open (``min_p``, suppressed tokens, banned n-grams, ...) ``generate`` would otherwise take from
    the checkpoint's ``generation_config.json``: completions would then come from another distribution than the one
    whose log-probabilities are in the loss, and for which log Z was estimated. vLLM samples in the policy's precision.

    ``rollout_bound`` is the largest gap between vLLM's log-probabilities and the policy's, nats per token; None for
    that of the precision (:data:`disa.training.rollouts.BOUNDS`).
    """

    rollout_bound: float | None = None
    _generations = 0

    def __init__(self, model: Any, *others: Any, args: GRPOConfig, **settings: Any) -> None:
        with policy_precision(model, args):
            super().__init__(model, *others, args=args, **settings)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with without_own_defaults(self.accelerator.unwrap_model(self.model)):
            batch = super()._generate_and_score_completions(inputs)
        if self.use_vllm:
            self._generations += 1
            # The 1st, 2nd, 4th, 8th, ...: the first shows the precision, the others that new weights reach vLLM.
            if self._generations.bit_count() == 1:
                check_gap(self, batch, self.rollout_bound)
        return batch
