"""Four prompts of fifteen completions each, everything about them exact, and trainers that start from the reference."""

import dataclasses

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM

from disa.anchor import Anchor
from disa.lm.digests import chat_template_digest, tokenizer_digest, weights_digest
from disa.lm.hf_trainer import trainer_arguments
from disa.lm.sampling_config import SamplingConfig
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate, ScoredTrajectory
from disa.testing import Space, binary_reward, kl, log_partition, make_proposal, random_model, target
from disa.testing.hf import PROMPTS, from_causal_lm, oracle_tokenizer, save_oracle
from disa.testing.proposals import Strength
from disa.training.build import TrainerInputs
from disa.training.config import TrainingConfig

BETA = 2.0
SIZE = 4
IDS = PROMPTS[:SIZE]


class TableReward:
    """Rewards of the oracle's completions as a TRL reward function."""

    __name__ = "table_reward"
    fingerprint = "oracle/table/1"

    def __init__(self, space, rewards):
        self.space, self.rewards = space, rewards
        self.numbers = {text(space, i): i for i in range(space.completions)}

    def __call__(self, prompts, completions, **_):
        return [float(self.rewards[int(p), self.numbers[c]]) for p, c in zip(prompts, completions, strict=True)]


def text(space, completion):
    return "".join(" ab"[t] for t in space.completion_ids(completion) if t)


class World:
    """A reference in a folder, binary rewards, a proposal, and the exact target."""

    def __init__(self, folder, seed=0):
        rng = np.random.default_rng(seed)
        self.folder, self.space = folder, Space(3, 3)
        reference = random_model(self.space, SIZE, rng)
        self.rewards = binary_reward(reference, np.array([0.1, 0.2, 0.4, 0.6]), rng)
        save_oracle(reference, folder)
        self.reference = from_causal_lm(self.load())  # as the float32 checkpoint holds it
        self.proposal = make_proposal(self.reference, self.rewards, Strength(0.5, noise=0.3), rng)
        self.log_z = log_partition(self.reference.log_probs, self.rewards, BETA)
        self.target = target(self.reference.log_probs, self.rewards, BETA)
        self.tokenizer = oracle_tokenizer(self.space)

    def load(self):
        return AutoModelForCausalLM.from_pretrained(self.folder)

    def policy(self, trained):
        """Exact log-probabilities of a trained model."""
        return from_causal_lm(trained).log_probs

    def kl_to_target(self, trained):
        return kl(self.policy(trained), self.target)

    def prompts(self):
        return Dataset.from_list([{"prompt": p, "prompt_id": p, "task": "oracle/1"} for p in IDS])

    def prompt_ids(self):
        return {p: self.tokenizer(p)["input_ids"] for p in IDS}

    def trajectories(self, per_prompt, reference_share=0.25, seed=0):
        """Scored trajectories, reference draws first."""
        rng = np.random.default_rng(seed)
        from_reference = round(per_prompt * reference_share)
        rows = []
        for source, model, n in (
            ("reference", self.reference, from_reference),
            ("proposal", self.proposal, per_prompt - from_reference),
        ):
            for p, draws in enumerate(model.sample(rng, n)):
                rows += [self._trajectory(p, draw, source, int(i)) for draw, i in enumerate(draws)]
        return rows

    def _trajectory(self, p, draw, source, i):
        log_ref, log_proposal = float(self.reference.log_probs[p, i]), float(self.proposal.log_probs[p, i])
        return ScoredTrajectory(
            prompt_id=IDS[p],
            draw=draw,
            source=source,
            completion=text(self.space, i),
            completion_ids=self.space.completion_ids(i),
            truncated=bool(self.space.truncated[i]),
            log_sampler=log_ref if source == "reference" else log_proposal,
            log_ref=log_ref,
            log_proposal=log_proposal,
            reward=float(self.rewards[p, i]),
        )

    def anchor(self, error=0.0, flags=None):
        """Exact log Z plus an error, with the flags of some prompts."""
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
        rows = [self._estimate(p, z + error, (flags or {}).get(p, [])) for p, z in zip(IDS, self.log_z, strict=True)]
        return Anchor({row.prompt_id: row for row in rows}, fingerprint, (0.0, 1.0), binary=True)

    @staticmethod
    def _estimate(prompt_id, log_z, flags):
        zeros = dict.fromkeys(("n", "n_reference", "mean_reward_reference", "ess", "hits_ess"), 0)
        row = PartitionEstimate(
            prompt_id, "train", log_z=log_z, q=0.0, interval_low=log_z - 0.3, interval_high=log_z + 0.3, **zeros,
            mean_weight=1.0, pareto_k=None, method="exact", flags=flags,
        )  # fmt: skip
        return dataclasses.replace(row, q=float(np.expm1(log_z) / np.expm1(BETA)))

    def shared(self):
        return {"model": self.load(), "processing_class": self.tokenizer}

    def online(self):
        """What every trainer that generates is made of."""
        reward = TableReward(self.space, self.rewards)
        return self.shared() | {
            "reward_funcs": [reward],
            "train_dataset": self.prompts(),
            "reference": self.folder,
        }

    def ingredients(self, output_dir, *, anchor=None, trajectories=(), steps=1, **changes):
        """What ``build_trainer`` makes any method's trainer of; ``changes`` are those of the training section."""
        section = {"inverse_temperature": BETA, "prompts_per_step": SIZE, "completions_per_prompt": 8}
        config = TrainingConfig(**section | changes)
        online, sampling = self.online(), ("num_generations", "max_completion_length")
        generating = settings(output_dir, group=config.completions_per_prompt)
        return TrainerInputs(
            config=config,
            sampling=SamplingConfig(max_completion_length=self.space.length_limit),
            task=None,  # only its fingerprint is asked for, where nothing is drawn
            prompt_ids=self.prompt_ids(),
            reference=self.folder,
            anchor=anchor,
            trajectories=trajectories,
            arguments=training(output_dir, steps=steps, batch=config.completions_per_step, logging_steps=1),
            generation={name: generating[name] for name in sampling},
            shared=self.shared(),
            dataset=online["train_dataset"],
            reward=online["reward_funcs"][0],
        )


def settings(output_dir, group=8, steps=60, **changes):
    """Keyword arguments of a configuration that generates, for full fine-tuning of the table."""
    return training(output_dir, steps=steps, batch=group * SIZE) | {
        "inverse_temperature": BETA,
        "num_generations": group,
        "max_completion_length": 3,
    } | changes  # fmt: skip


def training(output_dir, *, steps, batch, **changes):
    """Keyword arguments of any configuration."""
    return {
        "output_dir": str(output_dir),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.1,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1e6,
        "weight_decay": 0.0,
        "seed": 1,
        "save_strategy": "no",
        **trainer_arguments(bf16=False, log_every=5),
    } | changes
