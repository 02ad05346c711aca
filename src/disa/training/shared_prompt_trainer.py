"""TRL's GRPOTrainer with sampling and log-probabilities that compute a prompt once for all its completions.

Where the architecture, or a setting of TRL's, does not allow it, both are TRL's own. The loss is none of this class's
business: GRPO and GSPO train with it and TRL's loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from disa.lm.hf_trainer import SeededEpochs
from disa.lm.loading import without_dropout, without_own_defaults
from disa.lm.merged_adapters import merged_adapters, unmoved_base
from disa.lm.sampler import draw_tokens
from disa.lm.shared_prefix import causal_lm, shared_attention
from disa.training.policy_log_probs import answer_log_probs, completion_log_probs
from disa.training.rollouts import check_gap, policy_precision


class SharedPromptTrainer(GRPOTrainer):
    """Arguments as :class:`trl.GRPOTrainer`'s.

    It samples by its arguments alone. Whatever they leave open (``min_p``, suppressed tokens, ...) ``generate`` would
    otherwise take from the checkpoint's ``generation_config.json``, and draw from another distribution than the one
    whose log-probabilities are in the loss. vLLM samples in the policy's precision. The order of prompts is a function
    of the seed and the epoch.

    ``rollout_bound`` is the largest gap between vLLM's log-probabilities and the policy's, nats per token; None for
    that of the precision (:data:`disa.training.rollouts.BOUNDS`). ``prompts_not_shared`` says why the policy or the
    reference cannot share prompts; None where they do.
    """

    rollout_bound: float | None = None
    _generations = 0
    _rewards_per_func = torch.empty(0)
    _own_rewards: Mapping[int, type]
    """Environments whose own reward a function gives."""

    def __init__(self, model: Any, *others: Any, args: GRPOConfig, **settings: Any) -> None:
        with policy_precision(model, args):
            super().__init__(model, *others, args=args, **settings)
        self._own_rewards = {}
        for i, function in enumerate(self.reward_funcs):
            if getattr(function, "__qualname__", "").endswith("__init__.<locals>.get_reward"):
                function.fingerprint = f"{self.reward_func_names[i]}.get_reward"  # TRL's wrapper of an environment's
                self._own_rewards[i] = function.__defaults__[0]
        if self.args.disable_dropout:
            without_dropout(self.accelerator.unwrap_model(self.model))
        models = [self.accelerator.unwrap_model(m) for m in (self.model, self.ref_model) if m is not None]
        self.prompts_not_shared = answer_log_probs(models, self.accelerator)
        self.add_callback(SeededEpochs())
        if self.use_vllm:
            push = self.vllm_generation.sync_weights
            self.vllm_generation.sync_weights = lambda: self._push(push)

    def _push(self, push: Callable[[], None]) -> None:
        """Give vLLM the policy's weights; TRL merges adapters for it, and takes them out again."""
        with unmoved_base(self.accelerator.unwrap_model(self.model)):
            push()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, the backward pass included, in which checkpointed layers are computed again."""
        with contextlib.nullcontext() if self.prompts_not_shared else shared_attention(self.model):
            return super().training_step(*args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        elsewhere = torch.zeros(len(prompts), found.size(1), dtype=torch.uint8, device=found.device)
        for i, kind in self._own_rewards.items():  # which has no say in another environment, and decides in its own
            elsewhere[:, i] = torch.tensor([type(environment) is not kind for environment in self.environments])
        self._rewards_per_func = torch.where(self.accelerator.gather(elsewhere).bool(), 0.0, found)
        return found

    def raw_rewards(self) -> Tensor:
        """Weighted sums of the newest rewards, of all processes' rows in their order, shape (rows,).

        A function of weight 0 does not count. NaN where one that counts left the completion undecided.
        """
        weights = self.reward_weights.to(self._rewards_per_func.device)
        return torch.where(weights == 0, 0.0, self._rewards_per_func * weights).sum(dim=1)

    def token_log_probs(
        self, model: Any, inputs: dict[str, Any], *, batch_size: int | None = None, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Token log-probabilities of a batch, and on request entropies, as :mod:`disa.training.policy_log_probs`."""
        mask = inputs["completion_mask"]
        token_log_pi, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            mask.size(1),
            batch_size=batch_size,
            compute_entropy=entropy,
        )
        return token_log_pi, entropies

    @torch.no_grad()
    def fresh_log_probs(self, batch: dict[str, Any]) -> Tensor:
        """Token log-probabilities of fresh completions under the policy, by a pass where nobody kept them."""
        if (known := batch.get("old_per_token_logps")) is not None:
            return known
        return self.token_log_probs(self.model, batch, batch_size=self.args.per_device_train_batch_size)[0]

    def own_rows(self, rows: int) -> slice:
        """Which of all processes' rows are this process's."""
        first = self.accelerator.process_index * rows
        return slice(first, first + rows)

    # Completions that are still in use belong to a checkpoint: TRL would draw others, and count its steps from 0.

    def generation_state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of completions in use; None where every optimiser step draws its own."""
        per_generation = self.args.steps_per_generation * self.num_iterations
        if self.args.gradient_accumulation_steps % per_generation == 0:
            return None
        return {"step": self._step, "buffered": self._buffered_inputs}

    def load_generation_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`generation_state` gave."""
        self._step, self._buffered_inputs = state["step"], state["buffered"]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if (state := self.generation_state()) is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(state, self._generation_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := self._generation_file(checkpoint)).is_file():
            self.load_generation_state(torch.load(path, map_location=self.accelerator.device, weights_only=True))

    def _generation_file(self, folder: str) -> Path:
        return Path(folder) / f"generation_{self.accelerator.process_index}.pt"

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with without_own_defaults(self.accelerator.unwrap_model(self.model)):
            batch = super()._generate_and_score_completions(inputs)
        if self.use_vllm:
            self._generations += 1
            # The 1st, 2nd, 4th, 8th, ...: the first shows the precision, the others that new weights reach vLLM.
            if self._generations.bit_count() == 1:
                check_gap(self, batch, self.rollout_bound)
        return batch

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        elsewhere = self.use_vllm or self.use_transformers_continuous_batching
        if self.prompts_not_shared or elsewhere or images is not None or multimodal_fields:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        device, policy = self.accelerator.device, self.accelerator.unwrap_model(self.model)
        numbers = torch.rand(len(prompt_ids), self.max_completion_length, dtype=torch.float64, device=device)
        with merged_adapters(policy), self.accelerator.autocast():
            return draw_tokens(causal_lm(policy), prompt_ids, numbers, self.eos_token_ids, temperature=self.temperature)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.prompts_not_shared or any(value is not None and value is not False for value in others.values()):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others
            )
        first, size = input_ids.size(1) - logits_to_keep, batch_size or len(input_ids)
        parts = []
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            with self.accelerator.autocast():
                parts.append(
                    completion_log_probs(
                        model,
                        ids[:, :first],
                        mask[:, :first],
                        ids[:, first:],
                        mask[:, first:],
                        temperature=self.temperature,
                        entropy=compute_entropy,
                    )
                )
        log_p, entropy = zip(*parts, strict=True)
        return torch.cat(log_p), torch.cat(entropy) if compute_entropy else None, None
