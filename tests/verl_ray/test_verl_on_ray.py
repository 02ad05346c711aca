"""verl's own trainer on a real Ray of two nodes: what it computed, against ``disa.objectives``.

Slow: ``make test-verl-ray``. See ``cpu_verl`` for what stands in for accelerators.
"""

import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from disa.anchor import Anchor
from disa.lm.digests import weights_digest
from disa.lm.loading import load_model, load_tokenizer, trainable_model
from disa.lm.log_probs import sequence_log_probs
from disa.lm.sampling_config import decode_completion, encode_prompt
from disa.objectives.trajectory_balance import anchored_baseline, trajectory_balance_loss, trajectory_balance_residual
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt
from disa.tasks import make_task
from ray_cluster import Cluster

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl and Ray: make test-verl-ray", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS = 4
SECTION = {
    "trainer": {
        "nnodes": 2,
        "n_gpus_per_node": 1,
        "logger": ["console", "file"],
        "val_before_train": False,
    },
    "data": {"dataloader_num_workers": 0},
    "reward": {"num_workers": 2},
    "actor_rollout_ref": {
        "actor": {"strategy": "fsdp2", "use_torch_compile": False, "fsdp_config": {"use_torch_compile": False}},
        "ref": {"strategy": "fsdp2", "use_torch_compile": False, "fsdp_config": {"use_torch_compile": False}},
        "rollout": {"name": "transformers", "tensor_model_parallel_size": 1, "agent": {"num_workers": 2}},
    },
    "transfer_queue": {"backend": {"SimpleStorage": {"num_data_storage_units": 1}}},
}


class Training:
    """A run directory trained by verl on a cluster of its own."""

    def __init__(self, source: Path, folder: Path, **changes):
        self.folder, self.recipe_file = folder, folder / "recipe.yaml"
        values = yaml.safe_load(source.read_text()) | {"verl": SECTION}
        values["training"] = values["training"] | {"warmup_steps": 0, "learning_rate": 3e-3} | changes
        (folder / "samples").mkdir(parents=True)
        (folder / "run").mkdir()
        for name in ("1_tasks", "2_proposals", "3_scoring", "4_partition", "5_anchor"):
            (folder / "run" / name).symlink_to(source.parent / "run" / name)
        values["run_dir"] = str(folder / "run")
        self.recipe_file.write_text(yaml.safe_dump(values))
        self.cluster = Cluster(
            VERL_PLATFORM="cpu",
            VERL_USE_EXTERNAL_MODULES="cpu_verl",
            VERL_FILE_LOGGER_PATH=str(folder / "metrics.jsonl"),
            DISA_TEST_SAMPLES=str(folder / "samples"),
        )
        self.cluster.environment["PYTHONPATH"] = f"{Path(__file__).parent}:{self.cluster.environment['PYTHONPATH']}"
        for _ in range(2):
            self.cluster.start(cpus=8, gpus=1)

    def start(self, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "disa", "verl", str(self.recipe_file)]
        command += ["--set", f"verl.+ray_kwargs.ray_init.address={self.cluster.address}", *more]
        with (self.folder / "log.txt").open("a") as log:
            self.process = subprocess.Popen(command, env=self.cluster.environment, stdout=log, stderr=log)
        return self.process

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.cluster.close()

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return {line["step"]: line["data"] for line in map(json.loads, lines)}

    @property
    def samples(self) -> list[dict]:
        files = (self.folder / "samples").iterdir()
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(conversational_run, tmp_path_factory):
    training = Training(conversational_run, tmp_path_factory.mktemp("ray"))
    try:
        assert training.start().wait(1200) == 0, training.log[-6000:]
        exported = training.start("--export", str(training.folder / "model"))
        assert exported.wait(600) == 0, training.log[-3000:]
        yield training
    finally:
        training.close()


@pytest.fixture(scope="module")
def recomputed(trained):
    return recompute(trained, trained.samples)


def recompute(training, samples):
    """Loss, gradient norm before clipping of every step, and the last weights, from the sampled tokens alone."""
    recipe = load_recipe(training.recipe_file)
    config, sampling, steps = recipe.training, recipe.sampling, recipe.training.steps
    task, anchor = make_task(recipe.tasks), Anchor.load(f"{recipe.run_dir}/5_anchor")
    reference, policy = load_model(recipe.models.reference), trainable_model(recipe.models.reference)
    tokenizer = load_tokenizer(recipe.models.reference)
    prompts = read_rows(f"{recipe.run_dir}/1_tasks/train.parquet", Prompt)
    by_ids = {tuple(encode_prompt(tokenizer, p.prompt, sampling)): p for p in prompts}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
    found = {}
    for step in range(1, steps + 1):
        rows = [row for row in samples if row["step"] == step - 1]
        prompt_ids, completions = [row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows]
        owners = [by_ids[tuple(ids)] for ids in prompt_ids]
        reward = torch.tensor(
            [task.reward(p, decode_completion(tokenizer, c)) for p, c in zip(owners, completions, strict=True)]
        ).double()
        log_z = torch.tensor(anchor.log_z([p.prompt_id for p in owners])).double()
        group = torch.unique(torch.tensor([prompts.index(p) for p in owners]), return_inverse=True)[1]
        log_ref, log_pi = (
            torch.stack([summed(m, p, c, sampling.temperature) for p, c in zip(prompt_ids, completions, strict=True)])
            for m in (reference, policy)
        )
        delta = trajectory_balance_residual(log_pi, log_ref.detach(), reward, log_z, beta=config.inverse_temperature)
        baseline = anchored_baseline(delta.detach(), group, prior_strength=config.baseline_prior_strength)
        loss = trajectory_balance_loss(delta, baseline)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        found[step] = {"rows": len(rows), "loss": loss.item(), "norm": norm.item()}
    return found, policy


def summed(model, prompt, completion, temperature):
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).double().sum()


def test_loss_and_gradient_norm_of_every_step_are_those_of_disa_objectives(trained, recomputed):
    found, _ = recomputed
    assert sorted(trained.metrics) == sorted(found) == list(range(1, STEPS + 1))
    for step, metrics in trained.metrics.items():
        assert found[step]["rows"] == 8  # two prompts of four completions
        # Float32 sums of some tens of log-probabilities, in packed batches here and one by one there.
        assert metrics["actor/pg_loss"] == pytest.approx(found[step]["loss"], rel=1e-5, abs=1e-6)
        assert metrics["actor/grad_norm"] == pytest.approx(found[step]["norm"], rel=1e-5)


def test_the_exported_weights_are_the_recomputed_ones_and_not_rounded(trained, recomputed):
    exported, policy = load_model(trained.folder / "model").state_dict(), recomputed[1].state_dict()
    start = load_model(load_recipe(trained.recipe_file).models.reference).state_dict()
    assert exported.keys() == policy.keys()
    moved = max((policy[name] - start[name]).abs().max().item() for name in policy)
    for name, weights in exported.items():
        # Adam divides a gradient by its size: where that is near rounding, a step of the rate may differ by a share.
        torch.testing.assert_close(weights, policy[name], rtol=0, atol=1e-5)
    assert moved > 3e-3
    assert any(not torch.equal(w, w.bfloat16().float()) for w in exported.values())


def test_new_weights_reach_the_rollout_before_it_samples(trained):
    recipe = load_recipe(trained.recipe_file)
    reference = load_model(recipe.models.reference)
    for row in trained.samples:
        [there] = sequence_log_probs(reference, [row["prompt_ids"]], [row["completion_ids"]])
        same = abs(there - sum(row["log_probs"])) < 1e-5
        assert same == (row["step"] == 0)


def test_disa_evaluate_measures_an_exported_checkpoint_without_rounding_it(trained, tmp_path):
    model = trained.folder / "model"
    command = [sys.executable, "-m", "disa", "evaluate", f"trained={model}", "--recipe", str(trained.recipe_file)]
    command += ["--output", str(tmp_path)]
    done = subprocess.run(command, env=trained.cluster.environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "leaderboard" / "trained.json").read_text())["config_general"]
    exported = load_model(model)
    assert (said["model_dtype"], said["model_sha"]) == ("float32", weights_digest(exported))
    assert weights_digest(exported.bfloat16().float()) != said["model_sha"]


@pytest.fixture(scope="module")
def resumed(conversational_run, tmp_path_factory):
    """A training whose second node is killed, and then started again; with what was there before that."""
    training = Training(conversational_run, tmp_path_factory.mktemp("lost") / "ray", steps=12, save_every=2)
    try:
        running = training.start()
        while running.poll() is None and max(training.metrics, default=0) < 3:
            time.sleep(0.1)
        training.cluster.kill(1)
        code = running.wait(300)
        training.cluster.start(cpus=8, gpus=1)
        said, steps, samples = training.log, training.metrics, training.samples
        [newest] = training.folder.glob("run/verl/checkpoints/*/latest_checkpointed_iteration.txt")
        saved = int(newest.read_text())
        assert training.start().wait(1200) == 0, training.log[-6000:]
        # Samples of what the checkpoint does not hold are drawn again.
        anew = [row for row in training.samples if row not in samples]
        samples = [row for row in samples if row["step"] < saved] + anew
        yield training, code, said, steps, saved, samples
    finally:
        training.close()


def test_a_lost_node_ends_the_run_with_its_address(resumed):
    _, code, said, steps, saved, _ = resumed
    assert code == 2 and 3 <= max(steps) < 12, said[-6000:]
    [last] = [line for line in said.splitlines() if line.startswith("disa: ")]
    assert "left the Ray cluster" in last and "continues from its last checkpoint" in last
    assert saved in {max(steps) // 2 * 2, max(steps) // 2 * 2 - 2}


def test_a_second_start_continues_weights_optimiser_and_schedule(resumed):
    training, _, _, before, saved, samples = resumed
    after = training.metrics  # the file is written anew
    assert sorted(after) == list(range(saved + 1, 13))
    found, _ = recompute(training, samples)
    for step, metrics in ({k: v for k, v in before.items() if k <= saved} | after).items():
        # As above. An optimiser that had lost its moments would be off by half one step behind the checkpoint.
        assert metrics["actor/pg_loss"] == pytest.approx(found[step]["loss"], rel=1e-5, abs=1e-6), step
        assert metrics["actor/grad_norm"] == pytest.approx(found[step]["norm"], rel=1e-5), step


def test_a_reward_worker_that_refuses_stops_the_run_with_its_words(conversational_run, tmp_path):
    training = Training(conversational_run, tmp_path / "refused")
    try:
        # A node whose disa has another version of the reward: as if one node had not been updated.
        training.cluster.kill(1)
        training.cluster.start(cpus=8, gpus=1, DISA_TEST_OTHER_REWARD="1")
        assert training.start().wait(1200) == 2, training.log[-6000:]
        assert "of the step's 8 completions are missing" in training.log
        assert "this node's reward is" in training.log
    finally:
        training.close()
