"""A run resumed from a checkpoint is the run that was never interrupted, to the last bit."""

import pytest
import torch
from peft import LoraConfig
from small_trainer import GENERATIONS, PROMPTS

STEPS = 4
TIMES = ("wall_time", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
LORA = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
SETTINGS = {
    "on-policy": ({}, {}),
    "with an offline share": ({"offline_share": 0.3}, {"offline": True}),
    "in micro-batches with an offline share": (
        {
            "per_device_train_batch_size": PROMPTS * GENERATIONS // 2,
            "gradient_accumulation_steps": 2,
            "offline_share": 0.3,
        },
        {"offline": True},
    ),
    "with adapters": ({}, {"peft_config": LORA}),
    "with completions used three times": ({"num_iterations": 3}, {}),
    "with completions of two steps drawn at once": ({"steps_per_generation": 2, "per_device_train_batch_size": 6}, {}),
    "with earlier completions mixed in": ({"replay_share": 0.4, "replay_generations": 2}, {}),
    "with everything used again, in micro-batches": (
        {
            "num_iterations": 2,
            "replay_share": 0.4,
            "per_device_train_batch_size": PROMPTS * GENERATIONS // 2,
            "gradient_accumulation_steps": 2,
            "offline_share": 0.3,
        },
        {"offline": True},
    ),
    "with prompts by what they teach": ({"prompts": "signal"}, {}),
    "with prompts by what they teach, used twice": (
        {"prompts": "signal", "num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 6},
        {},
    ),
    "with batches that are given up": ({"num_iterations": 2, "learning_rate": 0.3, "min_ess": 0.95}, {}),
}


def curve(trainer):
    """All logged values but the times."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.mark.parametrize(("changes", "parts"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_resumed_run_has_the_uninterrupted_run_s_curve_and_weights(changes, parts, small_run, tmp_path):
    def trainer(saving):
        own = {key: small_run.offline() if key == "offline" else value for key, value in parts.items()}
        settings = {"max_steps": STEPS, "lr_scheduler_type": "cosine", "save_strategy": saving, "save_steps": 1}
        return small_run.trainer(tmp_path / "run", parts=own, **settings, **changes)

    uninterrupted = trainer("steps")
    uninterrupted.train()
    expected = curve(uninterrupted)
    assert [line["step"] for line in expected] == [1, 2, 3, 4]
    # Six prompts of three a step are epochs of two steps: step 2 ends the first, step 3 lies within the second.
    for step in (2, 3):
        resumed = trainer("no")
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert curve(resumed) == expected, f"resumed after step {step}"
        weights = dict(resumed.model.named_parameters())
        for name, parameter in uninterrupted.model.named_parameters():
            assert torch.equal(parameter, weights[name]), f"resumed after step {step}: {name}"


def test_another_seed_gives_another_curve(small_run, tmp_path):
    curves = []
    for seed in (0, 1):
        trainer = small_run.trainer(tmp_path / str(seed), seed=seed)
        trainer.train()
        curves.append(curve(trainer))
    assert curves[0] != curves[1]
