"""What the launcher checks before Ray starts, against verl's own configuration, data set and entry."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

if importlib.util.find_spec("verl") is None:  # anything else that is missing is an error
    pytest.skip("needs verl 0.9.1: make test-verl", allow_module_level=True)

import ray
from omegaconf import OmegaConf, open_dict
from transformers import LlamaConfig, LlamaForCausalLM
from verl import DataProto
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from disa.anchor import Anchor
from disa.cli.main import main
from disa.errors import DisaError
from disa.lm.loading import load_model, load_tokenizer
from disa.lm.sampling_config import encode_prompt
from disa.pipeline import Pipeline
from disa.recipe import load_recipe
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt
from disa.tasks import make_task
from disa.verl.export import export_checkpoint
from disa.verl.launch import check_registry, launch
from disa.verl.settings import REQUIRED, check_config, compose_config
from tiny_qwen import twin

FACTS = {"reference": "/model", "prompts": 6, "prompt_length": 20, "reward": "own", "anchor": "0" * 16}


def recipe_of(recipe_file, *overrides):
    """With a stated precision: that of the checkpoint could not be asked of ``/model``."""
    return load_recipe(recipe_file, ["training.compute=float32", *overrides])


def start(recipe_file, *overrides, anchor=None, check_only=True):
    lines = []
    folder = launch(load_recipe(recipe_file, list(overrides)), anchor=anchor, check_only=check_only, say=lines.append)
    return folder, lines


@pytest.fixture(scope="module")
def checked(conversational_run):
    """A checked run: recipe, folder, and the configuration written for verl."""
    folder, _ = start(conversational_run, "verl.trainer.nnodes=2", "verl.trainer.n_gpus_per_node=1")
    return load_recipe(conversational_run), folder, OmegaConf.load(folder / "config.yaml")


def dataset(config, tokenizer, files):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the datasets library, on forks
        return RLHFDataset(str(files), tokenizer, config.data)


def test_the_configuration_says_what_the_recipe_says(checked):
    recipe, folder, config = checked
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (2, 1)
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, rollout.n) == (2, 2, 4)
    assert (rollout.temperature, config.data.max_response_length, actor.optim.lr) == (1.0, 7, 1e-6)
    # Four steps of two prompts: two passes over six prompts, in batches of two.
    assert (config.trainer.total_training_steps, config.trainer.total_epochs) == (4, 2)
    assert config.algorithm.disa.baseline_prior_strength == 1.0
    assert Path(config.trainer.default_local_dir).parent == folder / "checkpoints"
    kwargs = config.reward.custom_reward_function.reward_kwargs
    assert json.loads(kwargs.task) == recipe.tasks.model_dump(mode="json")


def test_the_recipe_for_two_nodes_is_one_that_verl_accepts(pytestconfig, tmp_path):
    recipe = load_recipe(pytestconfig.rootpath / "recipes" / "verl" / "gsm8k-two-nodes.yaml")
    facts = {"prompts": 7473, "prompt_length": 300, "reward": "maths", "anchor": "0" * 16}
    config = compose_config(recipe, reference=recipe.models.reference, folder=tmp_path, **facts)
    assert config.trainer.nnodes * config.trainer.n_gpus_per_node == 16
    assert config.ray_kwargs.ray_init.address == "auto"
    # 200 steps of 128 prompts: 58 whole batches a pass, so four passes.
    assert (config.trainer.total_training_steps, config.trainer.total_epochs) == (200, 4)


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "adapters"])
def test_a_twin_of_the_recipe_for_64_gpus_passes_every_check_before_ray(lora, tmp_path, monkeypatch):
    if importlib.util.find_spec("vllm") is None:  # which verl asks for the ranks that it knows, at the very end
        asked = types.ModuleType("vllm_rollout")
        asked.get_vllm_max_lora_rank = lambda rank: rank
        for name in ("vllm_rollout", "vllm_rollout.utils"):
            monkeypatch.setitem(sys.modules, f"verl.workers.rollout.{name}", asked)
    # verl wants the completions of a step in equal numbers on all GPUs.
    recipe = twin("verl/qwen-32b-nodes", tmp_path, monkeypatch, prompts_per_step=16, lora=lora)
    Pipeline(recipe, say=lambda line: None).run("anchor")
    said = []
    folder = launch(recipe, anchor=None, check_only=True, say=said.append)
    assert "8 nodes of 8 GPUs" in said[0]
    actor = OmegaConf.load(folder / "config.yaml").actor_rollout_ref
    assert (actor.rollout.tensor_model_parallel_size, actor.actor.strategy) == (4, "fsdp2")
    assert actor.actor.ppo_max_token_len_per_gpu == 16384 and actor.model.enable_gradient_checkpointing
    assert actor.model.lora_rank == (2 if lora else 0)


def test_every_required_setting_is_checked_and_the_message_gives_its_reason(checked):
    _, _, config = checked
    longest = config.data.max_prompt_length
    check_config(config, config, longest)
    for key, (wanted, why) in REQUIRED.items():
        if isinstance(wanted, bool):
            other = not wanted
        else:
            other = wanted + 1 if isinstance(wanted, int | float) else "other"
        changed = copy.deepcopy(config)
        with open_dict(changed):
            OmegaConf.update(changed, key, other, merge=False)
        with pytest.raises(DisaError) as refused:
            check_config(changed, config, longest)
        assert key in str(refused.value) and why in str(refused.value)


@pytest.mark.parametrize(
    "setting",
    [
        "+trainer.v1.sync.parameter_sync_step=2",
        "trainer.v1.sampler.custom_sampler.path=sampler.py",
        "trainer.resume_from_path=/old/global_step_4",
        "trainer.critic_warmup=100",
        "actor_rollout_ref.rollout.quantization=fp8",
        "+actor_rollout_ref.rollout.engine_kwargs.vllm.logits_processors=[truncate]",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
        "actor_rollout_ref.rollout.calculate_log_probs=false",
        "data.custom_cls.path=other.py",
        "data.truncation=left",
        "data.train_max_samples=2",
        "actor_rollout_ref.model.hf_config_path=/other",
        "actor_rollout_ref.model.lora_adapter_path=/other",
        "+actor_rollout_ref.model.override_config.rope_theta=1",
        "actor_rollout_ref.actor.fsdp_config.qat.enable=true",
        "custom_reward_function.path=other.py",
        "reward_model.enable=true",
        "skip.rollout.enable=true",
        "algorithm.disa.prompts=1",
        "+a_setting_of_a_later_release=1",
    ],
)
def test_a_setting_that_is_not_known_to_leave_law_and_objective_alone_is_refused(conversational_run, tmp_path, setting):
    recipe = recipe_of(conversational_run, f"verl.{setting}")
    name = setting.partition("=")[0].removeprefix("+")
    with pytest.raises(DisaError, match=f"{name} is .*expected .*may change the sampling law or the objective"):
        compose_config(recipe, folder=tmp_path, **FACTS)


def test_attention_is_sdpa_without_flash_attention_and_may_be_chosen(conversational_run, checked):
    assert importlib.util.find_spec("flash_attn") is None
    key = "actor_rollout_ref.model.override_config.attn_implementation"
    assert OmegaConf.select(checked[2], key) == "sdpa"
    folder, _ = start(conversational_run, f"verl.{key}=eager", "verl.trainer.nnodes=2")
    assert OmegaConf.select(OmegaConf.load(folder / "config.yaml"), key) == "eager"
    with pytest.raises(DisaError, match="attn_implementation is 'local', expected one of"):
        start(conversational_run, f"verl.{key}=local")


def test_the_recipes_precision_is_that_of_training_and_rollout(checked):
    # verl computes in bfloat16 unless this very key says otherwise, whatever fsdp_config.dtype is.
    part = checked[2].actor_rollout_ref
    assert part.actor.fsdp_config.mixed_precision.param_dtype == "float32"
    assert part.ref.fsdp_config.mixed_precision.param_dtype == "float32"
    assert part.rollout.dtype == "float32"


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"anchor": "f" * 16}, False),
        ({"reward": "other"}, False),
        ({"reference": "/other"}, False),
        ({"set": "training.learning_rate=0.5"}, False),
        ({"set": "training.inverse_temperature=7"}, False),
        ({"set": "verl.actor_rollout_ref.rollout.dtype=bfloat16"}, False),
        ({"set": "verl.trainer.nnodes=3"}, True),
        ({"set": "verl.actor_rollout_ref.rollout.gpu_memory_utilization=0.3"}, True),
        ({"set": "training.save_every=1"}, True),
    ],
)
def test_checkpoints_belong_to_their_anchor_and_training_and_are_not_continued_by_another(
    conversational_run, tmp_path, settings, same
):
    first = compose_config(recipe_of(conversational_run), folder=tmp_path, **FACTS)
    overrides = [settings.pop("set")] if "set" in settings else []
    second = compose_config(recipe_of(conversational_run, *overrides), folder=tmp_path, **FACTS | settings)
    assert first.trainer.resume_mode == second.trainer.resume_mode == "auto"
    assert (first.trainer.default_local_dir == second.trainer.default_local_dir) is same


def test_verl_builds_a_model_with_the_trl_that_is_installed():
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    # What verl's FSDP engine does to every model; trl 1.16 has no value-head class to be patched.
    apply_monkey_patch(LlamaForCausalLM(config), use_remove_padding=True)


def test_an_exported_checkpoint_has_the_trained_float32_weights(checked, tmp_path):
    recipe, _, _ = checked
    model = load_model(recipe.models.reference)
    actor = tmp_path / "checkpoints" / "global_step_3" / "actor"
    model.save_pretrained(actor / "huggingface")
    load_tokenizer(recipe.models.reference).save_pretrained(actor / "huggingface")
    generator = torch.Generator().manual_seed(0)
    trained = {name: torch.randn(w.shape, generator=generator) for name, w in model.state_dict().items()}
    with pytest.raises(DisaError, match="has no checkpoint"):
        export_checkpoint(tmp_path / "checkpoints", tmp_path / "model")
    torch.save(trained, actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3")
    assert export_checkpoint(tmp_path / "checkpoints", tmp_path / "model") == 3
    found = load_model(tmp_path / "model")
    assert all(torch.equal(w, trained[name]) for name, w in found.state_dict().items())
    assert found.generation_config.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("verl.trainer.nodes=2", "Could not override 'trainer.nodes'"),
        ("verl.actor_rollout_ref.actor.ppo_mini_batch_size=1", "ppo_mini_batch_size is 1, expected 2"),
        ("verl.data.train_files=other.parquet", "train_files is 'other.parquet', expected '.*/verl/train.parquet'"),
        ("verl.data.max_prompt_length=5", "max_prompt_length is 5, expected at least"),
        ("verl.actor_rollout_ref.rollout.max_model_len=8", "max_model_len is 8, expected at least"),
        ("verl.actor_rollout_ref.rollout.temperature=0.7", "temperature is 0.7, the anchor was estimated for 1.0"),
        ("verl.data.max_response_length=6", "max_completion_length is 6, the anchor was estimated for 7"),
        ("training.inverse_temperature=3", "stage partition has no finished output for this recipe"),
        ("tasks.colors=3", "stage tasks has no finished output for this recipe"),
        ("verl.actor_rollout_ref.actor.use_dynamic_bsz=false", "verl refuses the configuration.*micro_batch_size"),
        ("training.offline_share=0.5", "offline_share is 0.5, which the verl plugin cannot do"),
        ("training.flagged=group", "flagged is 'group', which the verl plugin cannot do"),
        ("training.schedule=linear", "schedule is 'linear', which the verl plugin cannot do"),
        ("sampling.conversational=false", "conversational is False, which the verl plugin cannot do"),
        ("training.prompts_per_step=7", "prompts_per_step is 7, but disa has 6 training prompts"),
    ],
)
def test_what_would_fail_or_mislead_on_the_cluster_is_refused_before(conversational_run, setting, message):
    with pytest.raises(DisaError, match=message):
        start(conversational_run, setting)


def test_an_anchor_of_another_inverse_temperature_is_refused(conversational_run):
    anchor = conversational_run.parent / "run" / "5_anchor"
    with pytest.raises(DisaError, match="inverse_temperature is 3.0, the anchor was estimated for 2.0"):
        start(conversational_run, "training.inverse_temperature=3", anchor=anchor)


def test_another_references_weights_are_refused(conversational_run, tmp_path):
    from disa.lm.loading import load_model

    values = yaml.safe_load(conversational_run.read_text())
    model = load_model(values["models"]["reference"])
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "other")
    load_tokenizer(values["models"]["reference"]).save_pretrained(tmp_path / "other")
    with pytest.raises(DisaError, match="reference is .*, the anchor was estimated for"):
        start(
            conversational_run,
            f"models.reference={tmp_path / 'other'}",
            anchor=conversational_run.parent / "run" / "5_anchor",
        )


def test_an_edited_anchor_is_refused(conversational_run, tmp_path):
    run = conversational_run.parent / "run"
    (tmp_path / "manifest.json").write_text((run / "5_anchor" / "manifest.json").read_text())
    (tmp_path / "anchor.parquet").write_bytes((run / "5_anchor" / "anchor.parquet").read_bytes() + b" ")
    with pytest.raises(DisaError):
        start(conversational_run, anchor=tmp_path)


def test_another_plugin_under_the_name_is_refused(monkeypatch):
    check_registry()
    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "disa", lambda **_: None)
    with pytest.raises(DisaError, match="policy loss 'disa' is"):
        check_registry()


def test_verls_data_set_and_prompts_are_those_the_anchor_was_estimated_for(checked):
    recipe, folder, config = checked
    tokenizer = load_tokenizer(recipe.models.reference)
    anchor = Anchor.load(f"{recipe.run_dir}/5_anchor")
    prompts = read_rows(f"{recipe.run_dir}/1_tasks/train.parquet", Prompt)
    rows = dataset(config, tokenizer, folder / "train.parquet")
    assert len(rows) == len(prompts) == 6
    builder = create_continuous_token_builder(tokenizer, model_family="default")
    lengths = []
    for row, prompt in zip(rows, prompts, strict=True):
        assert row["extra_info"]["log_z"] == anchor.log_z([prompt.prompt_id])[0]
        # The ids that the rollout engine continues, by verl's own code, against those that were scored.
        found = list(builder.build_initial_tokens(row["raw_prompt"]))
        assert found == encode_prompt(tokenizer, prompt.prompt, recipe.sampling)
        lengths.append(len(found))
    assert config.data.max_prompt_length >= max(lengths)


def test_verls_reward_manager_gives_beta_r_minus_log_z(checked):
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    recipe, folder, config = checked
    tokenizer, task = load_tokenizer(recipe.models.reference), make_task(recipe.tasks)
    rows = dataset(config, tokenizer, folder / "validation.parquet")
    prompts = read_rows(f"{recipe.run_dir}/1_tasks/heldout.parquet", Prompt)
    manager = get_reward_manager_cls(config.reward.reward_manager.name)
    manager = manager(config=config, tokenizer=tokenizer, compute_score=get_custom_reward_fn(config))
    fields = ("data_source", "reward_model", "extra_info")
    for row, prompt in zip(rows, prompts, strict=True):
        solved = task.solutions(prompt)[0]
        for text, reward in ((solved, 1.0), (solved[1:], 0.0)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            assert task.reward(prompt, text) == reward
            responses = torch.tensor([ids + [tokenizer.pad_token_id]])
            mask = torch.tensor([[1, 1] + [1] * len(ids) + [0]])
            data = DataProto.from_dict(
                tensors={"responses": responses, "attention_mask": mask},
                non_tensors={key: np.array([row[key]], dtype=object) for key in fields},
            )
            found = manager.loop.run_until_complete(manager.run_single(data))
            log_z = Anchor.load(f"{recipe.run_dir}/5_anchor").log_z([prompt.prompt_id])[0]
            assert found["reward_score"] == 2.0 * reward - log_z
            assert found["reward_extra_info"] == {
                "score": 2.0 * reward - log_z,
                "acc": reward,
                "reward": reward,
                "log_z": log_z,
            }


def test_ray_is_told_what_remote_nodes_need(conversational_run, monkeypatch):
    # verl's own entry merges the runtime environment and hands it to ray.init, where this test stops it.
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.delenv("NCCL_DEBUG", raising=False)
    given = {}

    class Stopped(Exception):
        pass

    def init(**kwargs):
        given.update(kwargs)
        raise Stopped

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(Stopped):
        start(conversational_run, check_only=False)
    environment = given["runtime_env"]["env_vars"]
    assert environment["VERL_USE_EXTERNAL_MODULES"] == "disa.verl.plugin"
    assert environment["HF_HOME"] == "/models"
    assert environment["NCCL_DEBUG"] == "WARN"  # verl's own are still there


def test_the_command_checks_and_writes_what_it_would_run(conversational_run, capsys):
    assert main(["verl", str(conversational_run), "--check", "--set", "verl.trainer.nnodes=3"]) == 0
    assert "checked: 6 prompts" in capsys.readouterr().out
    folder = conversational_run.parent / "run" / "verl"
    assert {p.name for p in folder.iterdir()} == {"train.parquet", "validation.parquet", "config.yaml"}
    assert OmegaConf.load(folder / "config.yaml").trainer.nnodes == 3
    assert main(["verl", str(conversational_run), "--check", "--set", "verl.trainer.nnoodes=3"]) == 2
    assert "nnoodes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_worker_knows_the_plugin_by_the_environment_that_the_launcher_gives(checked):
    # A real local cluster; its workers are processes of their own.
    _, folder, _ = checked
    program = (
        "import ray, json, sys\n"
        "from omegaconf import OmegaConf\n"
        "config = OmegaConf.load(sys.argv[1])\n"
        "env = OmegaConf.to_container(config.ray_kwargs.ray_init.runtime_env)['env_vars']\n"
        "ray.init(num_cpus=1, include_dashboard=False, runtime_env={'env_vars': env})\n"
        "@ray.remote\n"
        "def look():\n"
        "    import verl\n"
        "    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY\n"
        "    return ['disa' in ADV_ESTIMATOR_REGISTRY, 'disa' in POLICY_LOSS_REGISTRY]\n"
        "print(json.dumps(ray.get(look.remote())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=800,
        # Not by entry point; and Ray's workers, otherwise of the lowest priority, at the same one as this process.
        env=os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none", "RAY_worker_niceness": "0"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [True, True]
