"""Every method on the enumerable model, at equal completions, against the exact target.

Ten prompts over 121 completions each, binary and graded rewards, beta 3. Every trainer is the one a run uses, starts
from the reference and sees the same number of sequences; methods that read trajectories get as many as the
others draw. Every finished policy is noted in a file, from which an interrupted run goes on. Fills the marked block
of the page::

    OMP_NUM_THREADS=1 python benchmarks/oracle_methods.py --seeds 5
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from datasets import Dataset
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer
from trl import GRPOConfig, GRPOTrainer

from disa import DISAConfig, DISATrainer, estimate_log_partition_batch
from disa.anchor import Anchor
from disa.display.marked_block import fill_block
from disa.lm.digests import chat_template_digest, tokenizer_digest, weights_digest
from disa.lm.hf_trainer import trainer_arguments
from disa.objectives.log_z import group_log_z
from disa.objectives.trajectory_balance import trajectory_balance_residual
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate, ScoredTrajectory
from disa.testing import (
    PROPOSALS,
    Space,
    binary_reward,
    expectation,
    graded_reward,
    kl,
    log_partition,
    make_proposal,
    random_model,
    target,
    total_variation,
)
from disa.testing.hf import PROMPTS, from_causal_lm, oracle_tokenizer, save_oracle
from disa.training.a_star_po import a_star_po, reference_values
from disa.training.balance_trainer import BalanceTrainer
from disa.training.build import FLOWRL_PUBLISHED, GFLOWRL_PUBLISHED
from disa.training.learned_log_z import Learned
from disa.training.log_z import Group, LogZ, gflowrl_log_z
from disa.training.offline_trainer import (
    OfflineConfig,
    OfflineTrainer,
    balance_batch_loss,
    forward_loss,
    supervised_batch_loss,
)
from disa.training.stored import StoredTrajectories
from disa.training.trajectory_weights import supervised_weights, target_weights

Array = NDArray[np.float64]
BETA, N = 3.0, len(PROMPTS)
GROUP = 8
HEAD_RATE = 0.03  # of FlowRL's head
BATCH = GROUP * N
ANCHOR_DRAWS = 64
"""Trajectories a prompt behind an estimated log Z."""
EPS = (-1.0, -0.3, 0.3, 1.0)
MORE_DRAWS = 8
"""The off-policy error is measured with this many times the trajectories, too."""


class TableReward:
    """Rewards of the oracle's completions as a TRL reward function."""

    __name__ = "table_reward"
    fingerprint = "oracle/table/1"

    def __init__(self, space: Space, rewards: Array) -> None:
        self.rewards = rewards
        self.numbers = {completion_text(space, i): i for i in range(space.completions)}

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        """Rewards in the order of the completions."""
        return [float(self.rewards[int(p), self.numbers[c]]) for p, c in zip(prompts, completions, strict=True)]


def completion_text(space: Space, completion: int) -> str:
    """Letters of one completion."""
    return "".join(" abcdefghij"[t] for t in space.completion_ids(completion) if t)


class World:
    """One seed's reference, rewards, proposal and exact target."""

    def __init__(self, folder: Path, seed: int, steps: int) -> None:
        rng = np.random.default_rng(seed)
        self.steps, self.per_prompt = steps, GROUP * steps
        self.folder, self.seed, self.space = folder, seed, Space(4, 4)
        reference = random_model(self.space, N, rng)
        success = np.geomspace(0.02, 0.5, N)
        graded = graded_reward(reference, success, rng)
        self.rewards = np.where(np.arange(N)[:, None] % 2, graded, binary_reward(reference, success, rng))
        save_oracle(reference, folder)
        self.reference = from_causal_lm(self.load())
        self.proposal = make_proposal(self.reference, self.rewards, PROPOSALS["weak"], rng)
        self.log_z = log_partition(self.reference.log_probs, self.rewards, BETA)
        self.target = target(self.reference.log_probs, self.rewards, BETA)
        self.tokenizer = oracle_tokenizer(self.space)
        self.prompt_ids = {p: self.tokenizer(p)["input_ids"] for p in PROMPTS}
        self.rows = self.trajectories(rng, self.per_prompt)

    def load(self) -> Any:
        """Return the reference, to be trained."""
        return AutoModelForCausalLM.from_pretrained(self.folder)

    def trajectories(self, rng: np.random.Generator, per_prompt: int) -> list[ScoredTrajectory]:
        """Draw them, a quarter from the reference."""
        rows, n_reference = [], per_prompt // 4
        for source, model, n in (
            ("reference", self.reference, n_reference),
            ("proposal", self.proposal, per_prompt - n_reference),
        ):
            for p, numbers in enumerate(model.sample(rng, n)):
                rows += [self._row(p, draw, source, int(number)) for draw, number in enumerate(numbers)]
        return rows

    def _row(self, p: int, draw: int, source: str, number: int) -> ScoredTrajectory:
        log_ref, log_proposal = (float(m.log_probs[p, number]) for m in (self.reference, self.proposal))
        return ScoredTrajectory(
            prompt_id=PROMPTS[p],
            draw=draw,
            source=source,
            completion=completion_text(self.space, number),
            completion_ids=self.space.completion_ids(number),
            truncated=bool(self.space.truncated[number]),
            log_sampler=log_ref if source == "reference" else log_proposal,
            log_ref=log_ref,
            log_proposal=log_proposal,
            reward=float(self.rewards[p, number]),
        )

    def first(self, draws: int) -> list[ScoredTrajectory]:
        """Return the first trajectories of every prompt, a quarter from the reference."""
        return [r for r in self.rows if r.draw < (draws // 4 if r.source == "reference" else draws - draws // 4)]

    def estimated_log_z(self, rows: list[ScoredTrajectory]) -> Array:
        """Log Z of every prompt from some trajectories."""
        return estimate_log_partition_batch(
            [r.reward for r in rows],
            prompt_index=[int(r.prompt_id) for r in rows],
            log_ref=[r.log_ref for r in rows],
            log_proposal=[r.log_proposal for r in rows],
            from_reference=[r.source == "reference" for r in rows],
            beta=BETA,
        ).log_z

    def anchor(self, log_z: Array) -> Anchor:
        """Freeze given values."""
        fingerprint = Fingerprint(
            reference=weights_digest(self.load()),
            tokenizer=tokenizer_digest(self.tokenizer),
            chat_template=chat_template_digest(self.tokenizer, conversational=False),
            temperature=1.0,
            max_completion_length=self.space.length_limit,
            stop_token_ids=(0,),
            reward=TableReward.fingerprint,
            inverse_temperature=BETA,
            task="oracle/1",
        )
        numbers = dict.fromkeys(("n", "n_reference", "mean_reward_reference", "ess", "hits_ess", "mean_weight"), 0)
        estimates = {
            p: PartitionEstimate(
                p, "train", z, 0.0, z, z, **numbers, pareto_k=None, method="given", flags=[]
            )  # fmt: skip
            for p, z in zip(PROMPTS, log_z.tolist(), strict=True)
        }
        return Anchor(estimates, fingerprint, (0.0, 1.0), binary=False)

    def stored(self, weights: torch.Tensor) -> StoredTrajectories:
        """All trajectories with a weight each."""
        return StoredTrajectories(self.rows, self.prompt_ids, weights, seed=self.seed)

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments of every configuration."""
        return {
            "output_dir": str(self.folder.parent / "out"),
            "max_steps": self.steps,
            "per_device_train_batch_size": BATCH,
            "learning_rate": 0.1,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1e6,
            "weight_decay": 0.0,
            "seed": self.seed,
            "save_strategy": "no",
            **trainer_arguments(bf16=False, log_every=10),
        } | changes

    def online(self, kind: type, config: type, *, group: int = GROUP, own: dict[str, Any], **given: Any) -> Trainer:
        """Make a trainer that draws its completions."""
        settings = {"num_generations": group, "max_completion_length": self.space.length_limit} | own
        if config is not GRPOConfig:
            given, settings = given | {"reference": self.folder}, {"inverse_temperature": BETA} | settings
        rows = [{"prompt": p, "prompt_id": p, "task": "oracle/1"} for p in PROMPTS]
        return kind(
            model=self.load(),
            reward_funcs=[TableReward(self.space, self.rewards)],
            args=config(**self.arguments(), **settings),
            # A batch holds distinct rows: groups of one need each prompt as often as a group is large.
            train_dataset=Dataset.from_list(rows * (GROUP if group == 1 else 1)),
            processing_class=self.tokenizer,
            **given,
        )

    def balance(self, log_z: LogZ, *, group: int = GROUP, **own: Any) -> Trainer:
        """Make a trainer with another log Z than an anchor's."""
        return self.online(BalanceTrainer, DISAConfig, group=group, own=own, log_z=log_z)

    def offline(self, stored: StoredTrajectories, loss: Callable, **changes: Any) -> Trainer:
        """Make a trainer that reads trajectories."""
        args = OfflineConfig(**self.arguments(**changes))
        return OfflineTrainer(self.load(), args, stored, loss, processing_class=self.tokenizer)

    def disa(self, log_z: Array, *, group: int = GROUP, share: float = 0.0) -> Trainer:
        """DISA with given log Z, mixed with the forward projection where it has a share."""
        anchor = self.anchor(log_z)
        offline = self.stored(target_weights(self.rows, anchor)) if share else None
        own = {"offline_share": share}
        return self.online(DISATrainer, DISAConfig, group=group, own=own, anchor=anchor, offline=offline)


def methods(world: World) -> dict[str, Callable[[], Trainer]]:
    """One trainer a row of the table."""
    exact, estimate = world.log_z, world.estimated_log_z(world.first(ANCHOR_DRAWS))
    all_rows = world.estimated_log_z(world.rows)
    reference_draws = [r for r in world.rows if r.source == "reference"]
    values = reference_values(reference_draws, inverse_temperature=BETA)
    gspo = {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4}
    return {
        "DISA, exact log Z": lambda: world.disa(exact),
        "DISA, exact log Z, groups of one": lambda: world.disa(exact, group=1),
        f"DISA, log Z from {ANCHOR_DRAWS} trajectories": lambda: world.disa(estimate),
        "DISA, forward projection": lambda: world.offline(
            world.stored(target_weights(world.rows, world.anchor(all_rows))), forward_loss
        ),
        "DISA, both in equal shares": lambda: world.disa(all_rows, share=0.5),
        "A*-PO, 8 reference samples": lambda: world.balance(a_star_po(values, BETA), group=1),
        "VarGrad": lambda: world.balance(Group()),
        "GFlowRL, means over tokens": lambda: world.balance(gflowrl_log_z(), length="mean"),
        "GFlowRL, published": lambda: world.balance(gflowrl_log_z(sums=True), **GFLOWRL_PUBLISHED),
        "FlowRL, sums": lambda: world.balance(Learned(HEAD_RATE)),
        "FlowRL, published": lambda: world.balance(Learned(HEAD_RATE, normalised_rewards=True), **FLOWRL_PUBLISHED),
        "GRPO": lambda: world.online(GRPOTrainer, GRPOConfig, own={}),
        "GSPO": lambda: world.online(GRPOTrainer, GRPOConfig, own=gspo),
        "SFT, correct": lambda: world.offline(
            world.stored(supervised_weights(world.rows, "correct")), supervised_batch_loss("mean")
        ),
        "SFT, by reward": lambda: world.offline(
            world.stored(supervised_weights(world.rows, "reward")), supervised_batch_loss("mean")
        ),
    }


def trained(trainer: Trainer) -> tuple[Array, float | None]:
    """Exact log-probabilities of the trained policy, and the last audited error of log Z."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    audits = [line["eps_audit"] for line in trainer.state.log_history if "eps_audit" in line]
    return from_causal_lm(trainer.model).log_probs, (audits or [None])[-1]


class Cells:
    """Measured values by name, kept in a JSON-lines file as they come."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._known = {tuple(key): value for key, value in map(json.loads, lines)}

    def get(self, seed: int, name: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Look a cell up, or compute it, say so and keep it."""
        key = (self.steps, seed, name)
        if key not in self._known:
            start = time.perf_counter()
            self._known[key] = {k: float(v) for k, v in compute().items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self._known[key]]) + "\n")
            shown = ", ".join(f"{k} {v:.4f}" for k, v in self._known[key].items())
            print(f"seed {seed}: {name}: {shown} ({time.perf_counter() - start:.1f} s)", flush=True)
        return self._known[key]


def _values(world: World, log_pi: Array) -> dict[str, float]:
    return {
        "kl": kl(log_pi, world.target).mean(),
        "tv": total_variation(log_pi, world.target).mean(),
        "reward": expectation(log_pi, world.rewards).mean(),
        "entropy": -expectation(log_pi, log_pi).mean(),
    }


def on_policy_error(world: World, eps: float) -> dict[str, float]:
    """DISA on its own completions with log Z off by eps."""
    log_pi, audit = trained(world.disa(world.log_z + eps))
    return {"kl": kl(log_pi, world.target).mean(), "audit": audit}


def off_policy_optimum(world: World, eps: float) -> dict[str, float]:
    """Exact optimum of the squared residual under the full-support mixture, the worst prompt's distance.

    It minimises E_rho[(log pi - log pi* + eps)^2] over all distributions, started from the target.
    """
    rho = 0.25 * np.exp(world.reference.log_probs) + 0.75 * np.exp(world.proposal.log_probs)
    optimum = np.stack([_stationary(*pair, eps) for pair in zip(rho, world.target, strict=True)])
    return {"tv": total_variation(optimum, world.target).max()}


def off_policy_trained(world: World, eps: float, more: int) -> dict[str, float]:
    """Squared residual on trajectories of the mixture, ``more`` times as many in batches so much larger."""
    rows = world.trajectories(np.random.default_rng([world.seed, more]), more * world.per_prompt)
    ones = torch.ones(len(rows), dtype=torch.float64)
    log_z = torch.tensor([world.log_z[int(row.prompt_id)] + eps for row in rows])
    stored = StoredTrajectories(rows, world.prompt_ids, ones, seed=world.seed, log_z=log_z)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the warning is what this measures
        loss = balance_batch_loss(BETA)
    log_pi, _ = trained(world.offline(stored, loss, per_device_train_batch_size=more * BATCH))
    return {"tv": total_variation(log_pi, world.target).max()}


OFF_POLICY = {
    "optimum": off_policy_optimum,
    "trained": functools.partial(off_policy_trained, more=1),
    "trained on more": functools.partial(off_policy_trained, more=MORE_DRAWS),
}


def _stationary(rho: Array, log_target: Array, eps: float) -> Array:
    def loss(x: Array) -> tuple[float, Array]:
        log_pi = log_softmax(x)
        delta = log_pi - log_target + eps
        slope = 2 * rho * delta
        return rho @ delta**2, slope - slope.sum() * np.exp(log_pi)

    return log_softmax(minimize(loss, log_target, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x)


def group_of_one_gradients() -> dict[str, float]:
    """Largest gradient that one rewarded completion alone in its group gives each kind of method."""
    log_pi = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    log_ref, reward = torch.tensor([-3.5], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    alone = torch.zeros(1, dtype=torch.long)
    sources = {
        "frozen log Z (DISA, A*-PO)": torch.full((1,), 0.5, dtype=torch.float64),
        "group log Z (VarGrad, GFlowRL)": group_log_z(log_pi, log_ref, reward, alone, beta=BETA),
    }
    found = {
        name: torch.autograd.grad(
            trajectory_balance_residual(log_pi, log_ref, reward, log_z, beta=BETA).square().sum(), log_pi
        )[0].item()
        for name, log_z in sources.items()
    }
    # A group's advantage is the reward less the group's mean, 0 here whatever it is divided by.
    return found | {"group advantage (GRPO, GSPO)": (reward - reward.mean()).item()}


def markdown(seeds: int, steps: int, table: list[dict], on: list[dict], off: dict[str, list[dict]]) -> str:
    """Everything between the page's markers."""
    lines = [
        f"Written by `python benchmarks/oracle_methods.py --seeds {seeds} --steps {steps}`: {N} prompts, beta {BETA:g},"
        f" {seeds} seeds, each with its own reference and rewards; {steps} steps of {BATCH} sequences for every method"
        f" ({BATCH} drawn and {BATCH} stored for DISA with both). Mean over seeds ± one standard error.",
        "",
        "| method | KL(policy \\|\\| target), nats | TV | mean reward | entropy, nats |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in table[0]:
        cells = [_spread([row[name][key] for row in table]) for key in ("kl", "tv", "reward", "entropy")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "With log Z off by eps in every prompt. On-policy: KL of DISA's policy and what the audit reads. Off-policy:"
        " the largest TV of any prompt and seed, of the exact optimum under the full-support mixture and of policies"
        f" trained on {GROUP * steps:,} and {MORE_DRAWS * GROUP * steps:,} draws per prompt from it, against the"
        " envelope 1 - exp(-|eps|).",
        "",
        "| eps | on-policy KL, nats | audit | off-policy TV, optimum"
        f" | trained on {GROUP * steps:,} | on {MORE_DRAWS * GROUP * steps:,} | envelope |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for eps in EPS:
        cells = [_spread([row[eps][key] for row in on]) for key in ("kl", "audit")]
        largest = [f"{max(row[eps]['tv'] for row in rows):.3f}" for rows in off.values()]
        lines.append(f"| {eps:+g} | {' | '.join([*cells, *largest])} | {1 - np.exp(-abs(eps)):.3f} |")
    alone = "; ".join(f"{name} {value:.3g}" for name, value in group_of_one_gradients().items())
    lines += [
        "",
        f"Signal of one rewarded completion alone in its group, at log pi / pi_ref = 0.5: {alone}. TRL refuses groups"
        " of one for GRPO and GSPO, and so do the trainers of VarGrad and GFlowRL.",
    ]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def main() -> None:
    """Run, print one line a policy, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="of 80 sequences each")
    parser.add_argument("--cells", type=Path, default=Path("oracle_methods.jsonl"), help="delete it to start over")
    parser.add_argument("--page", type=Path, default=Path(__file__).parent.parent / "docs" / "results.md")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    cells, table, on = Cells(options.cells, options.steps), [], []
    off: dict[str, list[dict]] = {kind: [] for kind in OFF_POLICY}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder) / "reference", seed, options.steps)
            rows = {"reference": lambda w=world: _values(w, w.reference.log_probs)}
            rows |= {
                name: lambda w=world, b=build: _values(w, trained(b())[0]) for name, build in methods(world).items()
            }
            table.append({name: cells.get(seed, name, compute) for name, compute in rows.items()})
            kinds = [(on, "on-policy", on_policy_error)]
            kinds += [(off[kind], f"off-policy {kind}", compute) for kind, compute in OFF_POLICY.items()]
            for found, what, compute in kinds:
                found.append(
                    {e: cells.get(seed, f"{what}, eps {e:+g}", lambda w=world, e=e, f=compute: f(w, e)) for e in EPS}
                )
    fill_block(options.page, "oracle_methods", markdown(options.seeds, options.steps, table, on, off))


if __name__ == "__main__":
    main()
