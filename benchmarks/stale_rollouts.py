"""On-policy DISA when completions come from a policy k optimiser steps old, on the small model.

    disa run recipes/quickstart.yaml --until anchor
    python benchmarks/stale_rollouts.py recipes/quickstart.yaml --page docs/method/reuse.md

A delay is simulated: step t learns from completions drawn by the policy of step t - k, weighted by
``w = min(pi / pi_sampler, cap)`` as in ``disa.training``, with the anchored baseline. Two things are measured.

1. *Gradient.* Along one run without delay the policies of all steps are kept. At the last of them the gradient from
   completions of the policy k steps older is compared with that from fresh ones. Two independent halves of the draws
   make the squared distance unbiased: ``(g_k - g_0)`` of one half times that of the other, over ``|g_0|^2`` likewise.
2. *Training.* Runs with each delay from the start, and how far from the target they end.

It needs the run's anchor and no other stage.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from disa.anchor import Anchor
from disa.lm.loading import load_tokenizer, trainable_model
from disa.lm.log_probs import PackedCompletions, sequence_log_probs, token_log_probs
from disa.lm.sampler import draw_rows
from disa.lm.sampling_config import decode_completion, encode_prompt
from disa.objectives.trajectory_balance import (
    anchored_baseline,
    effective_share,
    importance_weight,
    trajectory_balance_loss,
    trajectory_balance_residual,
)
from disa.recipe import Recipe, load_recipe
from disa.runs.records import Prompt
from disa.tasks import make_task
from disa.tasks.checked_rewards import checked_rewards
from page import fill, table

DELAYS = (0, 1, 2, 4, 8, 16)


class Setting:
    """The recipe's task, models and frozen log Z."""

    def __init__(self, recipe: Recipe, prompts_per_step: int, group: int) -> None:
        self.recipe, self.size, self.group = recipe, prompts_per_step, group
        self.task, self.beta = make_task(recipe.tasks), recipe.training.inverse_temperature
        self.prompts = self.task.prompts("train")
        self.folder = Path(recipe.run_dir) / "warmup/reference"
        self.tokenizer = load_tokenizer(self.folder)
        self.reference = trainable_model(self.folder).requires_grad_(False).eval()
        self.anchor = Anchor.load(Path(recipe.run_dir) / "5_anchor")

    def draw(self, policy: torch.nn.Module, prompts: Sequence[Prompt], rng: np.random.Generator) -> dict[str, object]:
        """A group of completions of each prompt, with everything that the loss reads but log pi."""
        rows = [prompt for prompt in prompts for _ in range(self.group)]
        asked = [encode_prompt(self.tokenizer, prompt.prompt, self.recipe.sampling) for prompt in rows]
        numbers = rng.random((len(rows), self.recipe.sampling.max_completion_length))
        draws = draw_rows(policy, self.tokenizer, asked, numbers, temperature=self.recipe.sampling.temperature)
        written = [draw.completion_ids for draw in draws]
        rewards = checked_rewards(self.task, rows, [decode_completion(self.tokenizer, ids) for ids in written])
        log_ref = sequence_log_probs(self.reference, asked, written, temperature=self.recipe.sampling.temperature)
        return {
            "prompts": asked,
            "completions": written,
            "group": torch.arange(len(prompts)).repeat_interleave(self.group),
            "log_z": torch.from_numpy(self.anchor.log_z([row.prompt_id for row in rows])),
            "log_sampler": torch.tensor([draw.log_prob for draw in draws], dtype=torch.float64),
            "log_ref": torch.from_numpy(log_ref),
            "reward": torch.tensor([float(reward or 0) for reward in rewards], dtype=torch.float64),
        }

    def loss(self, policy: torch.nn.Module, batch: dict[str, object], cap: float) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, residuals and log weights before the cap."""
        packed = PackedCompletions(batch["prompts"], batch["completions"], torch.device("cpu"))
        tokens, _ = token_log_probs(policy, packed, temperature=self.recipe.sampling.temperature)
        log_pi = torch.zeros(len(batch["reward"]), dtype=torch.float64).index_add(0, packed.row, tokens.double())
        residual = trajectory_balance_residual(
            log_pi, batch["log_ref"], batch["reward"], batch["log_z"], beta=self.beta
        )
        weight = importance_weight(log_pi, batch["log_sampler"], cap=cap)
        strength = self.recipe.training.baseline_prior_strength
        baseline = anchored_baseline(residual, batch["group"], prior_strength=strength, weight=weight)
        loss = trajectory_balance_loss(residual, baseline, weight)
        return loss, residual.detach(), (log_pi - batch["log_sampler"]).detach()

    def train(self, delay: int, steps: int, rate: float, seed: int) -> list[dict[str, Tensor]]:
        """Weights before every step and at the end."""
        policy, sampler = trainable_model(self.folder), trainable_model(self.folder).eval()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
        rng, kept = np.random.default_rng([seed, delay]), [copy.deepcopy(policy.state_dict())]
        for step in range(steps):
            sampler.load_state_dict(kept[max(0, step - delay)])
            chosen = rng.choice(len(self.prompts), self.size, replace=False)
            batch = self.draw(sampler, [self.prompts[i] for i in chosen], rng)
            loss, _, _ = self.loss(policy, batch, self.recipe.training.weight_cap)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), self.recipe.training.max_grad_norm)
            optimizer.step()
            kept.append(copy.deepcopy(policy.state_dict()))
        return kept

    def gradient(self, weights: Sequence[dict[str, Tensor]], delay: int, seed: int) -> tuple[Tensor, Tensor]:
        """Gradient at the last weights from completions ``delay`` steps older, and their log weights."""
        policy, sampler = trainable_model(self.folder), trainable_model(self.folder).eval()
        policy.load_state_dict(weights[-1])
        sampler.load_state_dict(weights[-1 - delay])
        rng = np.random.default_rng([seed, delay, 1])
        loss, _, log_weight = self.loss(policy, self.draw(sampler, self.prompts, rng), self.recipe.training.weight_cap)
        loss.backward()
        return torch.cat([p.grad.flatten().double() for p in policy.parameters() if p.grad is not None]), log_weight

    def kl(self, weights: dict[str, Tensor], seed: int) -> tuple[float, float]:
        """KL to the target, by fresh completions of every training prompt, and its standard error over prompts."""
        policy = trainable_model(self.folder).eval()
        policy.load_state_dict(weights)
        with torch.inference_mode():
            _, residual, _ = self.loss(policy, self.draw(policy, self.prompts, np.random.default_rng([seed, 2])), 1.0)
        means = residual.view(-1, self.group).mean(dim=1)
        return means.mean().item(), (means.std() / len(means) ** 0.5).item()


def main() -> None:
    """Train with every delay, compare gradients, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="STAGE.KEY=VALUE")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=256, help="training prompts, all used by every gradient")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    setting = Setting(load_recipe(options.recipe, options.overrides), prompts_per_step=32, group=8)
    setting.prompts = setting.prompts[: options.prompts]
    delays = [k for k in DELAYS if k < options.steps]
    lines = {k: {"bias": [], "ess": [], "capped": [], "kl_sampler": [], "kl": []} for k in delays}
    for seed in range(options.seeds):
        fresh = setting.train(0, options.steps, options.rate, seed)
        halves = [[setting.gradient(fresh, k, 2 * seed + half) for k in delays] for half in range(2)]
        (first, _), (second, _) = halves[0][0], halves[1][0]
        # The gradient without delay once more, from draws of its own: the row of 0 shows what noise is left.
        others = [setting.gradient(fresh, 0, 1000 + 2 * seed + half)[0] for half in range(2)]
        for i, k in enumerate(delays):
            (a, log_weight), (b, _) = (halves[0][i], halves[1][i])
            apart = (a - others[0]) @ (b - others[1]) / (first @ second)
            weights = fresh[-1] if k == 0 else setting.train(k, options.steps, options.rate, seed)[-1]
            lines[k]["bias"].append(apart.item())
            lines[k]["ess"].append(effective_share(log_weight).item())
            lines[k]["capped"].append((log_weight.exp() > setting.recipe.training.weight_cap).double().mean().item())
            lines[k]["kl_sampler"].append(-log_weight.mean().item())
            lines[k]["kl"].append(setting.kl(weights, seed)[0])
            print(seed, k, {name: round(values[-1], 4) for name, values in lines[k].items()}, flush=True)

    def shown(values: list[float]) -> str:
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        return f"{np.mean(values):.3f} ± {error:.3f}"

    start = setting.kl(setting.train(0, 0, options.rate, 0)[0], 0)[0]
    heading = [
        "steps old",
        "squared bias of the gradient",
        "ESS / n",
        "share capped",
        "KL(sampler, policy)",
        "KL after training",
    ]
    text = "\n".join(
        [
            *table(heading, [[k, *(shown(v) for v in found.values())] for k, found in lines.items()]),
            "",
            f"`{options.recipe}`: {len(setting.prompts)} prompts, {options.steps} steps of {setting.size} prompts with "
            f"{setting.group} completions, learning rate {options.rate:g}, cap {setting.recipe.training.weight_cap:g}, "
            f"{options.seeds} seeds; means with standard errors over seeds. The reference's KL to the target is "
            f"{start:.3f} nats.",
        ]
    )
    print(text)
    if options.page:
        fill("stale-rollouts", text, options.page)


if __name__ == "__main__":
    main()
