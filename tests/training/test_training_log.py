"""What every line of the step log says."""

import math
import threading
from contextlib import closing

import pytest
import torch
from small_trainer import GENERATIONS, PROMPTS, RecordingTrainer

from disa.errors import DisaError
from disa.objectives.trajectory_balance import audit_log_z_error
from disa.runs.folders import StageFolder
from disa.runs.step_log import StepLog, read_step_log
from disa.training.audit import ResidualRecord, audit
from disa.training.run import run_training

AUDIT = ("residual/mean", "residual/rms", "eps_audit", "kl_to_target", "kl_to_reference")
EVERY_STEP = ("loss", "reward", "entropy", "grad_norm", "learning_rate", *AUDIT)


def test_every_step_logs_every_metric_as_a_number(finished_run):
    lines = read_step_log(finished_run / "6_training" / "disa" / "steps.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {name: math.isfinite(line[name]) for name in EVERY_STEP} == dict.fromkeys(EVERY_STEP, True)
        assert line["residual/rms"] >= abs(line["residual/mean"])
        # Before the first step the policy is the reference, up to float32 sums of 7 tokens.
        assert line["step"] > 1 or line["kl_to_reference"] == pytest.approx(0.0, abs=1e-5)
        # log Z, at most beta = 2, plus the log ratio.
        assert line["kl_to_target"] == pytest.approx(line["residual/mean"] - line["eps_audit"])


def test_the_log_is_the_audit_of_the_step_s_residuals(small_run, tmp_path):
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, baseline="none")
    trainer.train()
    ((inputs, loss),) = trainer.losses
    (line, *_) = trainer.state.log_history
    assert line["reward"] == pytest.approx(inputs["raw_reward"].mean().item())
    # Policy and reference are equal in the first step, so the residual is log Z - beta r.
    residual = inputs["log_z"] - 2.0 * inputs["raw_reward"].double()
    assert line["residual/mean"] == pytest.approx(residual.mean().item(), abs=1e-5)
    assert line["residual/rms"] == pytest.approx(residual.square().mean().sqrt().item(), abs=1e-5)
    assert line["residual/rms"] ** 2 == pytest.approx(loss, rel=1e-5)
    assert line["eps_audit"] == pytest.approx(-math.log(torch.exp(-residual).mean().item()), abs=1e-5)
    assert line["kl_to_reference"] == pytest.approx(0.0, abs=1e-5)


def test_micro_batches_and_steps_since_the_last_line_are_audited_together(small_run, tmp_path):
    settings = {
        "max_steps": 4,
        "logging_steps": 4,
        "logging_first_step": False,
        "baseline": "none",
        "per_device_train_batch_size": PROMPTS * GENERATIONS // 3,
        "gradient_accumulation_steps": 3,
    }
    trainer = small_run.trainer(tmp_path, trainer_class=RecordingTrainer, **settings)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "residual/rms" in line]
    assert [line["step"] for line in lines] == [4]
    assert len(trainer.losses) == 12
    # Equal micro-batches: their mean squares average, and each loss is its mean square over three.
    mean_square = sum(3 * loss for _, loss in trainer.losses) / 12
    assert lines[0]["residual/rms"] ** 2 == pytest.approx(mean_square, rel=1e-5)


def test_whatever_the_interval_a_line_stands_at_every_checkpoint_and_after_the_last_step(small_run, tmp_path):
    path = tmp_path / "steps.jsonl"

    def train(resume=None):
        log = StepLog(path, "training")
        settings = {"max_steps": 5, "logging_steps": 10, "save_strategy": "steps", "save_steps": 2}
        trainer = small_run.trainer(tmp_path, parts={"callbacks": [log]}, **settings)
        with closing(log):
            trainer.train(resume_from_checkpoint=resume)
        return read_step_log(path)

    whole = train()
    assert [line["step"] for line in whole] == [1, 2, 4, 5]
    assert all(math.isfinite(line["entropy"]) for line in whole)
    # A resumed training takes its seconds up where its checkpoint was, and repeats what came after it.
    resumed = train(str(tmp_path / "checkpoint-4"))
    assert resumed[:3] == whole[:3]
    assert resumed[3]["wall_time"] > resumed[2]["wall_time"]
    assert [resumed[3][name] for name in EVERY_STEP] == [whole[3][name] for name in EVERY_STEP]


def test_evaluation_rows_are_audited_under_their_own_names(small_run, tmp_path):
    trainer = small_run.trainer(
        tmp_path, parts={"eval_dataset": small_run.rows.select(range(3))}, per_device_eval_batch_size=12
    )
    metrics = trainer.evaluate()
    logged = trainer.state.log_history[-1]
    assert all(math.isfinite(logged[f"eval_{name}"]) for name in AUDIT)
    assert math.isfinite(metrics["eval_loss"])


def test_undecided_rows_are_left_out_of_the_audit_and_an_empty_record_says_nothing():
    record = ResidualRecord()
    assert record.metrics() == {}
    nan = float("nan")
    both, one = torch.tensor([True, True]), torch.tensor([True])
    record.add(torch.tensor([1.0, nan]), torch.tensor([0.5, 9.0]), both)
    record.add(torch.tensor([nan]), torch.tensor([9.0]), one)
    record.add(torch.tensor([3.0]), torch.tensor([1.5]), one)
    assert record.metrics() == pytest.approx(audit(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.5])))
    assert record.metrics() == {}
    record.add(torch.tensor([nan]), torch.tensor([9.0]), one)
    assert record.metrics() == {}


def test_rows_outside_the_audit_count_for_the_distance_to_the_reference_alone():
    record = ResidualRecord()
    record.add(torch.tensor([1.0, -7.0, 3.0]), torch.tensor([0.5, 4.0, 1.5]), torch.tensor([True, False, True]))
    expected = audit(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.5])) | {"kl_to_reference": 2.0}
    assert record.metrics() == pytest.approx(expected)
    record.add(torch.tensor([0.0]), torch.tensor([4.0]), torch.tensor([False]))
    assert record.metrics() == {"kl_to_reference": 4.0}


def test_a_constant_residual_is_all_error_of_log_z():
    # pi = pi* and log Zhat = log Z + 0.7: every residual is 0.7.
    metrics = audit(torch.full((8,), 0.7, dtype=torch.float64), torch.zeros(8, dtype=torch.float64))
    expected = {"residual/mean": 0.7, "residual/rms": 0.7, "eps_audit": 0.7, "kl_to_target": 0.0, "kl_to_reference": 0}
    assert metrics == pytest.approx(expected, abs=1e-7)  # the number of rows enters as a float32 logarithm
    assert audit_log_z_error(torch.tensor([800.0, 900.0], dtype=torch.float64)).isfinite()


def test_the_bar_is_closed_where_training_raises(small_run, tmp_path, monkeypatch):
    def broken(task, prompts, completions):
        raise DisaError("no reward today")

    monkeypatch.setattr("disa.training.run.checked_rewards", broken)
    stage = StageFolder(tmp_path, "6_training/disa", version=1, identity={}, inputs={})
    stage.begin()
    recipe = small_run.recipe
    parts = (recipe.training, recipe.sampling, small_run.task, small_run.prompts, small_run.reference, small_run.anchor)
    with pytest.raises(DisaError, match="no reward today"):
        run_training(stage, "disa", *parts, [])
    # A bar that is left open redraws itself from a thread of its own, over whatever is printed next.
    redrawing = [thread for thread in threading.enumerate() if "Refresh" in type(thread).__name__]
    for thread in redrawing:
        thread.join(timeout=10)  # told to stop, it wakes up ten times per second
    assert not any(thread.is_alive() for thread in redrawing)
