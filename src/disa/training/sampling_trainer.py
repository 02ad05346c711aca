"""GRPO's trainer under the project's sampling law."""

from __future__ import annotations

from typing import Any

from trl import GRPOTrainer

from disa.lm.loading import without_own_defaults


class SamplingTrainer(GRPOTrainer):
    """Samples by its arguments alone.

    Whatever they leave open (``min_p``, suppressed tokens, banned n-grams, ...) ``generate`` would otherwise take from
    the checkpoint's ``generation_config.json``: completions would then come from another distribution than the one
    whose log-probabilities are in the loss, and for which log Z was estimated.
    """

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with without_own_defaults(self.accelerator.unwrap_model(self.model)):
            return super()._generate_and_score_completions(inputs)
