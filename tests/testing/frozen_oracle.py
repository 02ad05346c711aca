"""A reference on disk, its exact target, and the trainer that should reach it."""

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM

from disa import DISAConfig, DISATrainer
from disa.anchor import Anchor
from disa.lm.digests import chat_template_digest, tokenizer_digest, weights_digest
from disa.lm.hf_trainer import trainer_arguments
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate
from disa.testing import Space, binary_reward, graded_reward, kl, log_partition, random_model, target
from disa.testing.hf import PROMPTS, from_causal_lm, oracle_tokenizer, save_oracle

BETA = 3.0


class TableReward:
    """Rewards of an oracle's completions as a TRL reward function: prompt and text say which entry."""

    __name__ = "table_reward"
    fingerprint = "oracle/table/1"

    def __init__(self, space, rewards):
        self.numbers = {self.text(space, i): i for i in range(space.completions)}
        self.rewards = rewards

    @staticmethod
    def text(space, completion):
        return "".join(" abcdefghijklmnopqrstuvwxyz"[t] for t in space.completion_ids(completion) if t)

    def __call__(self, prompts, completions, **_):
        return [float(self.rewards[int(p), self.numbers[c]]) for p, c in zip(prompts, completions, strict=True)]


class Problem:
    """Ten prompts with binary and graded rewards, a reference saved to a folder, and everything exact about them."""

    def __init__(self, folder, *, vocabulary=4, length_limit=4, seed=0):
        rng = np.random.default_rng(seed)
        self.folder, self.space = folder, Space(vocabulary, length_limit)
        self.reference = random_model(self.space, len(PROMPTS), rng)
        success = np.geomspace(0.02, 0.5, len(PROMPTS))
        graded = graded_reward(self.reference, success, rng)
        self.rewards = np.where(np.arange(10)[:, None] % 2, graded, binary_reward(self.reference, success, rng))
        save_oracle(self.reference, folder)
        # What the float32 checkpoint holds is the reference; the table above is rounded by saving it.
        self.reference = from_causal_lm(self.load())
        self.log_z = log_partition(self.reference.log_probs, self.rewards, BETA)
        self.target = target(self.reference.log_probs, self.rewards, BETA)

    def load(self):
        return AutoModelForCausalLM.from_pretrained(self.folder)

    def anchor(self, log_z_error=0.0):
        """Every prompt's exact log Z, plus an error, frozen."""
        tokenizer = oracle_tokenizer(self.space)
        fingerprint = Fingerprint(
            reference=weights_digest(self.load()),
            tokenizer=tokenizer_digest(tokenizer),
            chat_template=chat_template_digest(tokenizer, conversational=False),
            temperature=1.0,
            max_completion_length=self.space.length_limit,
            stop_token_ids=(0,),
            reward=TableReward.fingerprint,
            inverse_temperature=BETA,
            task="oracle/1",
        )
        estimates = {p: _exact_estimate(p, z + log_z_error) for p, z in zip(PROMPTS, self.log_z, strict=True)}
        return Anchor(estimates, fingerprint, (0.0, 1.0), binary=False)

    def rows(self):
        return Dataset.from_list([{"prompt": p, "prompt_id": p, "task": "oracle/1"} for p in PROMPTS])

    def trainer(self, output_dir, anchor, **changes):
        """A DISATrainer that fine-tunes the whole table, from the reference."""
        settings = {
            "inverse_temperature": BETA,
            "max_steps": 200,
            "num_generations": 32,
            "per_device_train_batch_size": 32 * len(PROMPTS),
            "gradient_accumulation_steps": 1,
            "max_completion_length": self.space.length_limit,
            "learning_rate": 0.1,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1e6,
            "weight_decay": 0.0,
            "seed": 1,
            "save_strategy": "no",
            **trainer_arguments(bf16=False, log_every=10),
        }
        return DISATrainer(
            model=self.load(),
            reward_funcs=[TableReward(self.space, self.rewards)],
            anchor=anchor,
            args=DISAConfig(output_dir=str(output_dir), **settings | changes),
            train_dataset=self.rows(),
            reference=self.folder,
            processing_class=oracle_tokenizer(self.space),
        )

    def kl_to_target(self, model):
        """Exact KL(policy || target) of every prompt, nats."""
        return kl(from_causal_lm(model).log_probs, self.target)


def _exact_estimate(prompt_id, log_z):
    numbers = {"n": 0, "n_reference": 0, "mean_reward_reference": 0.0, "ess": 0.0, "hits_ess": 0.0, "mean_weight": 1.0}
    q = np.expm1(log_z) / np.expm1(BETA)
    ends = {"interval_low": log_z, "interval_high": log_z}
    return PartitionEstimate(
        prompt_id, "train", log_z=log_z, q=q, **ends, **numbers, pareto_k=None, method="exact", flags=[]
    )
