"""Processes that train together give the loss curve of one: same global batch, same order, same rows.

TRL seeds its sampler by process, so the completions that several processes draw are not those that one draws. Here all
take stored completions instead: the k-th one of a prompt at a step is the same in whichever process asks for it.
"""

import collections
import os
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from small_trainer import SmallRun

from disa.errors import DisaError
from disa.lm.loading import load_model, load_tokenizer
from disa.runs import processes
from disa.runs.folders import StageFolder
from disa.runs.step_log import read_step_log
from disa.training.config import TrainingConfig
from disa.training.methods import METHODS
from disa.training.run import _arguments, run_training
from disa.training.shared_prompt_trainer import SharedPromptTrainer
from launched import launch

TIMES = ("wall_time", "step_time")
SETTINGS = {
    "compute": "float32",
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

    # The balance trainers have a turn of their own, GRPO the engine's.
    GRPOTrainer._generate_single_turn = SharedPromptTrainer._generate_single_turn = stored
    for method in methods:
        stage = StageFolder(Path(folder), method, version=1, identity={}, inputs={})
        if processes.rank() == 0:
            stage.begin()
        processes.wait_for_all()
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
        processes.wait_for_all()


def train_spread(*arguments):
    """Train under FSDP2 where there are several processes.

    accelerate 1.15 offers FSDP to accelerators only. These CPU processes pass for some: what wraps, gathers, digests
    and saves the model is the same code, on gloo instead of NCCL.
    """
    if processes.count() > 1:
        import torch
        from accelerate.state import AcceleratorState, PartialState
        from accelerate.utils import DistributedType

        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP")
        os.environ.update(FSDP_STATE_DICT_TYPE="FULL_STATE_DICT", FSDP_RESHARD_AFTER_FORWARD="true")

        def set_device(state):
            state.device = torch.device("cpu")

        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = set_device
        torch.distributed.init_process_group("gloo")
    train(*arguments)
    if processes.count() > 1:
        assert AcceleratorState().is_fsdp2


def curve(folder):
    lines = read_step_log(folder / "steps.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_curves(run_dir, folder, methods, *, training=train, **changes):
    for count in (1, 2):
        assert launch(training, str(run_dir), str(folder / str(count)), methods, changes, count=count) == [0] * count
    for method in methods:
        one, two = (curve(folder / str(count) / method) for count in (1, 2))
        assert [line["step"] for line in two] == [1, 2, 3]
        for alone, together in zip(one, two, strict=True):
            assert together == pytest.approx(alone, rel=TOLERANCE, abs=TOLERANCE), method
        # Steps differ from each other by far more than processes do: an equality of flat curves would say nothing.
        assert max(abs(line["grad_norm"] / one[0]["grad_norm"] - 1) for line in one) > 100 * TOLERANCE
        facts = [StageFolder(folder / str(n), method, version=1, identity={}, inputs={}).manifest for n in (1, 2)]
        assert [fact["processes"] for fact in facts] == [1, 2]
        assert facts[0]["completions"] == facts[1]["completions"]
        assert_same_weights(*(load_model(folder / str(n) / method / "model") for n in (1, 2)), load_model_of(run_dir))


def load_model_of(run_dir):
    return load_model(Path(run_dir) / "warmup" / "reference")


def assert_same_weights(alone, together, reference):
    """Weights saved by the first of two processes are whole: as far from the reference as those of one process."""
    for (name, a), b, r in zip(alone.named_parameters(), together.parameters(), reference.parameters(), strict=True):
        moved = (a - r).norm()
        # Adam's steps have the learning rate's size whatever the gradient's: where that is rounding, so is the step.
        assert (a - b).norm() <= 0.05 * moved + 1e-6, name


def test_two_processes_have_the_curve_of_one_on_policy_and_on_stored_trajectories(finished_run, tmp_path):
    assert_same_curves(finished_run, tmp_path, ["disa_both", "sft"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_method_has_the_curve_of_one_process(finished_run, tmp_path):
    tried_above = {"disa_both", "sft"}
    # Rewards normalised within groups sum to zero: the head's first gradient is rounding, which Adam makes a full step.
    rounding = {"flowrl_published"}
    assert_same_curves(finished_run, tmp_path, [method for method in METHODS if method not in tried_above | rounding])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_weights_spread_by_fsdp2_have_the_curve_of_one_process(finished_run, tmp_path):
    assert_same_curves(finished_run, tmp_path, ["disa_both", "vargrad", "sft"], training=train_spread)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_adapters_on_weights_spread_by_fsdp2_have_the_curve_of_one_process(finished_run, tmp_path):
    lora = {"rank": 2, "alpha": 4}
    assert_same_curves(finished_run, tmp_path, ["disa", "disa_forward"], training=train_spread, lora=lora)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("changes", [{"lora": {"rank": 2, "alpha": 4}}, {"flagged": "group"}], ids=str)
def test_adapters_and_group_log_z_have_the_curve_of_one_process(changes, finished_run, tmp_path):
    assert_same_curves(finished_run, tmp_path, ["disa"], **changes)


def test_rows_of_a_batch_are_those_that_its_parts_hold_together(small_run):
    stored = small_run.offline()
    whole = stored.batch(3, 8, "cpu", 0)
    parts = [stored.batch(3, 4, "cpu", 0, part=k, parts=2) for k in (0, 1)]
    assert torch.equal(torch.cat([part.log_ref for part in parts]), whole.log_ref)
    for part in parts:
        assert part.tokens.unique().item() == whole.completion_mask.sum().item() / 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompts_per_step": 3}, r"training.prompts_per_step is 3, which 2 processes cannot share evenly.*Fix: "),
        ({"micro_batch": 4, "completions_per_prompt": 2}, r"micro_batch 4 does not divide the 6 completions.*Fix: "),
    ],
)
def test_a_step_that_the_processes_cannot_share_is_refused(changes, problem, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DisaError, match=problem):
        _arguments("disa", TrainingConfig(**SETTINGS | {"prompts_per_step": 6} | changes), "reference", tmp_path)


def test_a_process_s_micro_batches_add_up_to_its_share(monkeypatch, tmp_path):
    config = TrainingConfig(**SETTINGS | {"prompts_per_step": 6, "micro_batch": 6})
    for count, accumulated in ((1, 4), (2, 2)):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        arguments = _arguments("disa", config, "reference", tmp_path)
        assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == (6, accumulated)


@pytest.mark.parametrize("path", sorted(Path("recipes/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_launch_configurations_are_ones_that_accelerate_reads(path):
    found = ClusterConfig.from_yaml_file(yaml_file=str(path))
    assert found.num_processes == 8
    assert found.mixed_precision == "no"
