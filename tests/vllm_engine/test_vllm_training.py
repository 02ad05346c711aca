"""vLLM draws the completions of training, in the same process: DISA and GRPO, one after the other."""

import contextlib
import gc
import json
import shutil

import pytest
import torch
import yaml
from trl.generation.vllm_generation import VLLMGeneration
from vllm_server import serve

from disa.errors import DisaError
from disa.lm.loading import load_model
from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.training import shared_prompt_trainer

BOUND = 1e-5  # nats per token, as in the proposals' tests; the recipe refuses more


@pytest.fixture
def trained(vllm_run, tmp_path, recipe_values):
    """Train a copy of the run, with changes of its recipe's training section; the run directory."""
    shutil.copytree(vllm_run.parent / "run", tmp_path / "run", copy_function=shutil.copy2)

    def train(**changes):
        recipe_values["training"] |= changes
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values | {"run_dir": str(tmp_path / "run")}))
        Pipeline(load_recipe(tmp_path / "recipe.yaml"), say=lambda line: None).run("training")
        return tmp_path / "run"

    return train


def steps(run_dir, method):
    return [json.loads(line) for line in (run_dir / "6_training" / method / "steps.jsonl").read_text().splitlines()]


def test_two_methods_train_in_one_process_and_sampler_and_trainer_agree_at_every_step(trained):
    folder = trained()
    reference = load_model(folder / "warmup" / "reference").state_dict()
    for method in ("disa", "grpo"):
        log = steps(folder, method)
        assert [row["step"] for row in log] == [1, 2, 3, 4]
        gaps = {row["step"]: row["rollouts/gap"] for row in log if "rollouts/gap" in row}
        # The engine has the new weights after each step, not those that it was loaded with.
        assert list(gaps) == [1, 2, 4] and max(gaps.values()) < BOUND
        policy = load_model(folder / "6_training" / method / "model").state_dict()
        # Adam moves a weight by about the learning rate, .01, per step.
        assert max((policy[name] - reference[name]).abs().max() for name in policy) > 0.01
    # A cache of a gigabyte belongs to each engine: both are gone.
    gc.collect()
    held = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.nbytes > 2**28]
    assert [tuple(t.shape) for t in held] == []


def test_the_same_seeds_give_the_same_training(trained, tmp_path):
    first = steps(trained(methods=["disa"]), "disa")
    shutil.rmtree(tmp_path / "run" / "6_training")
    again = steps(trained(methods=["disa"]), "disa")
    clock = {"wall_time"} | {name for name in first[-1] if "time" in name or "runtime" in name or "per_second" in name}
    assert [{k: v for k, v in row.items() if k not in clock} for row in again] == [
        {k: v for k, v in row.items() if k not in clock} for row in first
    ]


def test_an_engine_of_another_precision_is_refused_at_the_first_step(trained, monkeypatch):
    monkeypatch.setattr(shared_prompt_trainer, "policy_precision", lambda *_: contextlib.nullcontext())  # as TRL has it
    with pytest.raises(DisaError, match=r"training step 1, .*differ from the trainer's by 0\.00\d+ nats per token"):
        trained(methods=["disa"])


@pytest.mark.parametrize("method", ["disa", "grpo"])
def test_an_engine_that_keeps_its_first_weights_is_refused(trained, monkeypatch, method):
    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: None)
    with pytest.raises(DisaError, match="training step [24], .*vLLM's log-probabilities differ"):
        trained(methods=[method], inverse_temperature=2, warmup_steps=0)


def test_a_server_that_cannot_take_weights_or_computes_otherwise_is_refused(trained, vllm_run, served):
    at = lambda url: {"mode": "server", "options": {"server_base_url": url}}  # noqa: E731
    with pytest.raises(DisaError, match="no development endpoints.*Fix: start it with: VLLM_SERVER_DEV_MODE=1 vllm"):
        trained(methods=["disa"], vllm=at(served))
    settings = ("--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1")
    with serve(vllm_run.parent / "run" / "warmup" / "reference", *settings, VLLM_SERVER_DEV_MODE="1") as url:
        with pytest.raises(DisaError, match="has dtype torch.bfloat16, expected torch.float32.*Fix: .*--dtype float32"):
            trained(methods=["disa"], vllm=at(url))
