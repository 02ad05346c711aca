"""Every method by its name: what it depends on, that it trains, and what DISA does with flags and groups of one."""

import subprocess
import sys
import typing

import pytest
import torch
from method_oracle import IDS, SIZE, World, settings

from disa.errors import DisaError
from disa.lm.loading import load_model
from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.folders import read_json
from disa.training.config import TrainingConfig
from disa.training.disa_config import DISAConfig
from disa.training.methods import METHOD_SPECIFIC_FIELDS, METHODS, MethodName
from disa.training.trainer import DISATrainer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("oracle") / "reference")


def disa(world, tmp_path, anchor, group=8, steps=2, **changes):
    args = DISAConfig(**settings(tmp_path, group=group, steps=steps, logging_steps=1, **changes))
    return DISATrainer(anchor=anchor, args=args, **world.online())


def test_names_settings_and_configuration_agree_and_need_no_torch():
    assert typing.get_args(MethodName) == tuple(METHODS)
    assert set(TrainingConfig.model_fields) >= METHOD_SPECIFIC_FIELDS
    code = "import sys, disa.training.methods, disa.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_method_depends_on_its_own_settings_and_on_no_other_methods(method):
    changed = {
        "inverse_temperature": 7.0,
        "prompts": "signal",
        "baseline": "none",
        "baseline_prior_strength": 3.0,
        "flagged": "skip",
        "offline_share": 0.25,
        "offline_weight_cap": 3.0,
        "offline_weight_tail": "pareto",
        "log_z_learning_rate": 0.5,
        "value_samples": 4,
        "gflowrl_clip": "gap",
        "weight_cap": 3.0,
        "min_ess": 0.1,
        "replay_share": 0.25,
        "replay_generations": 2,
        "length_scale": 8.0,
        "residual_clip": 2.0,
    }
    assert changed.keys() == METHOD_SPECIFIC_FIELDS
    plain = TrainingConfig().method_identity(method)
    for name, value in changed.items():
        differs = TrainingConfig(**{name: value}).method_identity(method) != plain
        assert differs == (name in METHODS[method].settings), name


def test_steps_uses_and_learning_rates_can_be_set_for_one_method_and_change_it_alone():
    plain = TrainingConfig()
    config = TrainingConfig(
        steps_of={"gspo": 7, "grpo": 9}, steps_per_completion_of={"gspo": 3, "a2po": 2}, learning_rates={"flowrl": 0.5}
    )
    uses = {method: (config.method_uses(method), config.optimizer_steps(method)) for method in ("gspo", "a2po", "grpo")}
    assert uses == {"gspo": (3, 21), "a2po": (2, 400), "grpo": (1, 9)}
    assert (config.method_steps("gspo"), config.method_steps("grpo"), config.method_steps("disa")) == (7, 9, 200)
    assert (config.method_learning_rate("flowrl"), config.method_learning_rate("disa")) == (0.5, 1e-3)
    moved = {m for m in METHODS if config.method_identity(m) != plain.method_identity(m)}
    assert moved == {"gspo", "flowrl", "grpo", "a2po"}


def test_disa_learns_from_stored_with_an_offline_share_and_a_star_po_never():
    found = {m for m in METHODS if TrainingConfig(offline_share=0.25).learns_from_stored(m)}
    assert found == {"disa", "disa_both"} | {m for m in METHODS if not METHODS[m].generates}
    assert not TrainingConfig().learns_from_stored("disa")


def test_one_completion_a_prompt_is_refused_for_methods_that_need_groups():
    with pytest.raises(ValueError, match="leaves vargrad, grpo, flowrl_published without groups"):
        TrainingConfig(methods=("disa", "vargrad", "grpo", "flowrl_published"), completions_per_prompt=1)
    assert TrainingConfig(methods=("disa", "a2po", "flowrl"), completions_per_prompt=1).completions_per_step == 32


def test_every_method_trains_from_one_finished_run(run_copy):
    recipe, run_dir = run_copy
    overrides = [f"training.methods=[{','.join(METHODS)}]", "training.value_samples=4", "training.steps=1"]
    overrides += ["training.steps_per_completion=2", "training.warmup_steps=0"]
    with pytest.warns(UserWarning, match="leaks"):
        Pipeline(load_recipe(recipe, overrides), say=lambda line: None).run(until="training")
    for method in METHODS:
        assert (run_dir / "6_training" / method / "model" / "config.json").is_file(), method
        assert (run_dir / "6_training" / method / "steps.jsonl").read_text().count('"step": 2,') == 1, method
        # Twelve completions are drawn for two steps; each step reads twelve stored trajectories of its own.
        manifest = read_json(run_dir / "6_training" / method / "manifest.json")
        stored = method == "disa_both" or not METHODS[method].generates
        assert (manifest["completions"], manifest["stored"]) == (12 * METHODS[method].generates, 24 * stored), method
    # Adapters leave the embeddings alone; full fine-tuning on the same trajectories does not.
    folders = ("warmup/reference", "6_training/sft/model", "6_training/lora_sft/model")
    models = [load_model(run_dir / folder) for folder in folders]
    before, full, adapted = (model.get_input_embeddings().weight for model in models)
    assert torch.equal(adapted, before) and not torch.equal(full, before)
    names = [models[0].get_parameter(n) for n, _ in models[0].named_parameters() if n.endswith("proj.weight")]
    after = [models[2].get_parameter(n) for n, _ in models[2].named_parameters() if n.endswith("proj.weight")]
    assert any(not torch.equal(a, b) for a, b in zip(after, names, strict=True))


def test_disa_learns_from_groups_of_one(world, tmp_path):
    trainer = disa(world, tmp_path, world.anchor(), group=1, steps=120, per_device_train_batch_size=SIZE)
    before = world.kl_to_target(trainer.model).mean()
    trainer.train()
    assert world.kl_to_target(trainer.model).mean() < before / 5


def test_flagged_prompts_take_their_log_z_from_the_group_and_the_log_says_so(world, tmp_path):
    trainer = disa(world, tmp_path, world.anchor(error=5.0, flags={"1": ["few_hits"]}), flagged="group")
    seen = {}
    inner = trainer.log_z.sampled

    def known(trainer, batch, rows):
        log_z = inner(trainer, batch, rows)
        seen.update(zip([r["prompt_id"] for r in rows], log_z.tolist(), strict=True))
        return log_z

    trainer.log_z.sampled = known
    trainer.train()
    for prompt_id in IDS:
        # Five nats off where the anchor was asked; the group's own mean lies within its rewards' range.
        off = seen[prompt_id] - world.log_z[int(prompt_id)]
        assert (off == pytest.approx(5.0)) == (prompt_id != "1")
    assert -2.5 < seen["1"] - world.log_z[1] < 2.5
    assert trainer.state.log_history[0]["flagged/group"] == 1


def test_skipped_prompts_are_not_trained_on(world, tmp_path):
    trainer = disa(
        world, tmp_path, world.anchor(flags={"2": ["wide_interval"]}), flagged="skip", per_device_train_batch_size=24
    )
    before = trainer.model.model.table.weight.detach().clone()
    trainer.train()
    moved = (trainer.model.model.table.weight != before).any(dim=1).reshape(SIZE, -1).any(dim=1)
    assert moved.tolist() == [True, True, False, True]
    assert trainer.state.log_history[0]["flagged/skip"] == 1


def test_skipping_that_leaves_less_than_a_step_takes_is_refused(world, tmp_path):
    # A step takes all four prompts here.
    with pytest.raises(DisaError, match="which leaves 3 to train on, expected at least the 4 of a step"):
        disa(world, tmp_path, world.anchor(flags={"2": ["wide_interval"]}), flagged="skip")


def test_flags_stop_the_trainer_that_is_to_refuse_them(world, tmp_path):
    with pytest.raises(DisaError, match="1 of 4 prompts are flagged"):
        disa(world, tmp_path, world.anchor(flags={"2": ["wide_interval"]}), flagged="refuse")


def test_group_fallback_without_groups_and_unknown_policies_are_refused(tmp_path):
    with pytest.raises(DisaError, match="needs groups"):
        DISAConfig(**settings(tmp_path, group=1), flagged="group")
    with pytest.raises(DisaError, match="flagged='drop', expected"):
        DISAConfig(**settings(tmp_path), flagged="drop")


def test_without_flags_every_policy_trains_alike(world, tmp_path):
    ends = []
    for policy in ("train", "group", "skip", "refuse"):
        trainer = disa(world, tmp_path, world.anchor(), flagged=policy)
        trainer.train()
        ends.append(trainer.model.model.table.weight.detach())
    assert all(torch.equal(ends[0], end) for end in ends[1:])
