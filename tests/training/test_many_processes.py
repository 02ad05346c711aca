"""Processes that train together give the loss curve of one: same global batch, same order, same rows.

TRL seeds its sampler by process, so the completions that several processes draw are not those that one draws. Here all
take stored completions instead: the k-th one of a prompt at a step is the same in whichever process asks for it.
"""

import collections
from pathlib import Path

import pytest
from small_trainer import SmallRun

from disa import processes
from disa.engine import load_tokenizer, read_step_log
from disa.rundir import StageFolder
from disa.training.config import TrainingConfig
from disa.training.run import run_training
from launched import launch

TIMES = ("wall_time", "step_time")
SETTINGS = {
    "inverse_temperature": 2,
    "steps": 3,
    "prompts_per_step": 2,
    "completions_per_prompt": 4,
    "value_samples": 4,
    "warmup_steps": 0,
    "learning_rate": 0.01,
}
# Sums over a batch are added up in another order (float32, 1e-7), and Adam divides small gradients by small second
# moments three times over; the largest difference seen is 1e-5. A row lost, doubled or misgrouped moves every value
# by its share of eight rows.
TOLERANCE = 1e-4


def train(run_dir, folder, methods, changes):
    """Train as the pipeline does, one method after another."""
    from trl import GRPOTrainer

    small = SmallRun(Path(run_dir))
    config = TrainingConfig(**SETTINGS | changes)
    tokenizer = load_tokenizer(small.reference)
    names = {tuple(tokenizer(p.prompt)["input_ids"]): p.prompt_id for p in small.prompts}
    by_prompt = {prompt_id: [t for t in small.trajectories if t.prompt_id == prompt_id] for prompt_id in names.values()}

    def stored(self, prompt_ids, *others, **options):
        seen, found = collections.Counter(), []
        for ids in map(tuple, prompt_ids):
            rows = by_prompt[names[ids]]
            found.append(rows[(self.state.global_step + 5 * seen[ids]) % len(rows)].completion_ids)
            # Without groups a prompt's rows may be in several processes, none of which knows the others'.
            seen[ids] += self.num_generations > 1
        return found, None

    GRPOTrainer._generate_single_turn = stored
    for method in methods:
        stage = StageFolder(Path(folder), method, version=1, identity={}, inputs={})
        if processes.rank() == 0:
            stage.begin()
        processes.meet()
        run_training(
            stage,
            method,
            config,
            small.recipe.sampling,
            small.task,
            small.prompts,
            small.reference,
            small.anchor,
            [row for rows in by_prompt.values() for row in rows],
        )
        processes.meet()


def curve(folder):
    lines = read_step_log(folder / "steps.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_curves(run_dir, folder, methods, **changes):
    for count in (1, 2):
        assert launch(train, str(run_dir), str(folder / str(count)), methods, changes, count=count) == [0] * count
    for method in methods:
        one, two = (curve(folder / str(count) / method) for count in (1, 2))
        assert [line["step"] for line in two] == [1, 2, 3]
        for alone, together in zip(one, two, strict=True):
            assert together == pytest.approx(alone, rel=TOLERANCE, abs=TOLERANCE), method
        assert max(abs(line["loss"] - one[0]["loss"]) for line in one) > 100 * TOLERANCE, "the curve is flat"
        facts = [StageFolder(folder / str(n), method, version=1, identity={}, inputs={}).manifest for n in (1, 2)]
        assert [fact["processes"] for fact in facts] == [1, 2]
        assert facts[0]["completions"] == facts[1]["completions"]


def test_two_processes_have_the_curve_of_one_on_policy_and_on_stored_trajectories(finished_run, tmp_path):
    assert_same_curves(finished_run, tmp_path, ["disa_both", "sft"])


@pytest.mark.slow
def test_every_method_has_the_curve_of_one_process(finished_run, tmp_path):
    methods = ["disa", "disa_forward", "disa_offline_balance", "flowrl", "flowrl_published", "gflowrl", "a2po", "gspo"]
    assert_same_curves(finished_run, tmp_path, [*methods, "sft_reward"])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"lora": {"rank": 2, "alpha": 4}}, {"flagged": "group"}], ids=str)
def test_adapters_and_group_log_z_have_the_curve_of_one_process(changes, finished_run, tmp_path):
    assert_same_curves(finished_run, tmp_path, ["disa"], **changes)
