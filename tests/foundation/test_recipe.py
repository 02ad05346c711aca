"""A recipe is read whole or refused with the field's name."""

import re

import pytest
import yaml
from pydantic import ValidationError

from disa.config import StageConfig, speed_only
from disa.errors import DisaError
from disa.evaluation.config import EvaluationConfig
from disa.evaluation.generation import GenerationSettings
from disa.evaluation.sources import ServerSettings
from disa.lm.sampling_config import SamplingConfig
from disa.partition.config import PartitionConfig
from disa.proposals.config import ProposalsConfig
from disa.recipe import ModelsConfig, Recipe, load_recipe
from disa.rewards.code import Limits
from disa.scoring.config import ScoringConfig
from disa.study.config import PolicyCells, StrengthConfig, StudyConfig
from disa.tasks.config import (
    CountdownConfig,
    GraphColoringConfig,
    NQueensConfig,
    Puzzle24Config,
    ShortestPathConfig,
)
from disa.tasks.dataset_config import DatasetConfig, SourceConfig
from disa.training.config import LoRAConfig, TrainingConfig
from disa.warmup.config import SmallModelConfig, WarmupConfig, WarmupRun

CONFIGS = pytest.mark.parametrize(
    "config",
    [
        Recipe,
        ModelsConfig,
        CountdownConfig,
        Puzzle24Config,
        GraphColoringConfig,
        NQueensConfig,
        ShortestPathConfig,
        DatasetConfig,
        SourceConfig,
        WarmupConfig,
        WarmupRun,
        SmallModelConfig,
        SamplingConfig,
        ProposalsConfig,
        ScoringConfig,
        PartitionConfig,
        TrainingConfig,
        LoRAConfig,
        EvaluationConfig,
        StudyConfig,
        StrengthConfig,
        PolicyCells,
        GenerationSettings,
        ServerSettings,
        Limits,
    ],
    ids=lambda c: c.__name__,
)


@CONFIGS
def test_every_field_is_documented(config):
    assert [name for name, field in config.model_fields.items() if not field.description] == []


@CONFIGS
def test_unknown_keys_fail_and_fields_are_frozen(config):
    assert config.model_config["extra"] == "forbid"
    assert config.model_config["frozen"] is True


def test_a_field_cannot_be_changed_after_the_fact():
    with pytest.raises(ValidationError):
        ScoringConfig().parity_bound = 1.0


def test_identity_leaves_out_exactly_the_fields_declared_speed_only():
    class Config(StageConfig):
        width: int = 1
        batch: int = speed_only(8)

    class Outer(StageConfig):
        inner: Config = Config()
        seed: int = 0

    assert Config().identity() == {"width": 1}
    assert Config(batch=9).identity() == Config().identity()
    assert Outer(inner=Config(batch=9)).identity() == {"inner": {"width": 1}, "seed": 0}


def test_values_and_overrides_reach_the_recipe(tiny_recipe, write_recipe):
    overrides = ["training.inverse_temperature=7.5", "tasks.colors=3", "training.lora.rank=2", "run_dir=elsewhere"]
    recipe = load_recipe(write_recipe(tiny_recipe), [*overrides, "training.methods=[disa]", "warmup.proposal=null"])
    assert recipe.training.inverse_temperature == 7.5
    assert recipe.tasks == GraphColoringConfig(**tiny_recipe["tasks"] | {"colors": 3})
    assert recipe.training.lora == LoRAConfig(rank=2)
    assert recipe.training.methods == ("disa",)
    assert recipe.warmup.proposal is None
    assert recipe.run_dir == "elsewhere"


def test_a_later_override_wins(tiny_recipe, write_recipe):
    recipe = load_recipe(write_recipe(tiny_recipe), ["training.steps=5", "training.steps=6"])
    assert recipe.training.steps == 6


@pytest.mark.parametrize("name", ["quickstart", "smollm2-countdown", "gemma3-countdown", "study"])
def test_the_recipes_that_come_with_the_project_load(name, pytestconfig):
    assert load_recipe(pytestconfig.rootpath / "recipes" / f"{name}.yaml").run_dir == f"runs/{name}"


def test_a_recipe_survives_being_written_and_read(tiny_recipe, write_recipe):
    recipe = load_recipe(write_recipe(tiny_recipe))
    assert load_recipe(write_recipe(recipe.model_dump(mode="json"), "again.yaml")) == recipe


REFUSED = {
    "unknown key": ("training.learning_rat=1", "field training.learning_rat: unknown key"),
    "unknown section": ("trainning.steps=1", "field trainning: unknown key"),
    "key below a task": ("tasks.numberz=3", "field tasks.numberz: unknown key"),
    "wrong type": ("training.steps=many", "field training.steps: .*integer.* found 'many'"),
    "a section that is a number": ("training=3", "field training: .*found 3"),
    "below a range": ("training.steps=0", "field training.steps: .*greater than or equal to 1, found 0"),
    "above a range": ("proposals.reference_share=1.5", "field proposals.reference_share: .*found 1.5"),
    "not a choice": ("training.baseline=mean", "field training.baseline: .*'anchored' or 'none', found 'mean'"),
    "unknown task": ("tasks.name=chess", "field tasks.name: unknown task 'chess'. Fix: choose one of countdown, "),
    "no task": ("tasks={seed: 1}", "field tasks.name: no task is named. Fix: choose one of countdown, "),
    "unknown method": ("training.methods=[disa,ppo]", r"field training.methods.1: .*found 'ppo'"),
    "no edge colours": ("tasks.colors=1", "field tasks.colors: "),
    "template without a place": ("tasks.prompt_template=hi", "field tasks: prompt_template has no {edges}"),
    "top_p": ("sampling.top_p=0.9", "field sampling: top_p=0.9 removes support"),
    "top_k": ("sampling.top_k=50", "field sampling: top_k=50 removes support"),
    "system prompt in plain text": ("sampling.system_prompt=Hi", "system_prompt needs conversational"),
    "micro batch": ("training.micro_batch=5", "field training: micro_batch 5 does not divide .* = 12"),
    "zero micro batch": ("training.micro_batch=0", "field training.micro_batch: "),
    "k without samples": ("evaluation.ks=[1,64]", "field evaluation: ks .* samples_per_prompt 4"),
    "no k": ("evaluation.ks=[]", "field evaluation"),
    "heads that do not divide": ("warmup.small_model.heads=3", "field warmup.small_model: heads 3"),
    "self-start": ("warmup.proposal.start=proposal", "proposal.start must be base"),
    "both origins": ("models.reference=x", "give models.reference or a warmup section, found both"),
    "no origin": ("warmup=null", "give models.reference or a warmup section, found neither"),
    "infinite beta": ("training.inverse_temperature=.inf", "field training.inverse_temperature: "),
    "nan": ("sampling.temperature=.nan", "field sampling.temperature: "),
}


@pytest.mark.parametrize(("override", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_value_is_refused_with_file_field_and_fix(override, message, tiny_recipe, write_recipe):
    path = write_recipe(tiny_recipe)
    with pytest.raises(DisaError, match=message) as caught:
        load_recipe(path, [override])
    assert str(path) in str(caught.value)
    assert "Fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["training.steps", "=3", "training.=3", ".steps=3", "run_dir.x=3", "training.steps=[1", "", "a..b=1"]
)
def test_a_malformed_override_is_refused(override, tiny_recipe, write_recipe):
    with pytest.raises(DisaError, match=re.escape(f"command line: --set {override}") + ".*Fix: "):
        load_recipe(write_recipe(tiny_recipe), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"run_dir: [", "not valid YAML"),
        (b"a: b: c", "not valid YAML.*line 1"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"- tasks", "a recipe is a mapping of sections"),
        (b"", "a recipe is a mapping of sections"),
        (b"just text", "a recipe is a mapping of sections"),
        (b"{}", "field (run_dir|tasks): Field required"),
        (b"1: 2", "field"),
        (b"null: 2", "field"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    with pytest.raises(DisaError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_a_missing_recipe_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(DisaError, match=re.escape(f"{path}: recipe not found") + ".*Fix: "):
            load_recipe(path)


def test_the_number_of_further_problems_is_told(tiny_recipe, write_recipe):
    with pytest.raises(DisaError, match="and 1 more"):
        load_recipe(write_recipe(tiny_recipe), ["training.steps=0", "training.seed=x"])


def test_a_recipe_read_by_yaml_alone_is_what_the_loader_reads(tiny_recipe, write_recipe):
    path = write_recipe(tiny_recipe)
    assert Recipe(**yaml.safe_load(path.read_text())) == load_recipe(path)


def test_merged_keys_are_taken_and_may_be_set_again(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "run_dir: runs/x\ntasks: {name: countdown}\nmodels: {reference: a}\n"
        "training: &short {steps: 3, seed: 5}\ncomparison: {search: {<<: *short, steps: 4}}\n"
    )
    recipe = load_recipe(path)
    assert recipe.training.steps == 3
    assert recipe.comparison["search"] == {"steps": 4, "seed": 5}


@pytest.mark.parametrize(
    ("changes", "length", "rate"),
    [
        ({"models": {"reference": "a"}}, 1024, 1e-6),
        ({"models": {"reference": "a"}, "training": {"lora": {"rank": 4}}}, 1024, 2e-5),
        ({"models": {"reference": "a"}, "training": {"learning_rate": 0.1}, "sampling": None}, 1024, 0.1),
        ({"warmup": {"base": "small"}}, 24, 1e-3),
    ],
)
def test_lengths_and_rates_fit_pretrained_models_where_models_are_given(changes, length, rate):
    found = Recipe.model_validate({"run_dir": "r", "tasks": {"name": "countdown"}} | changes)
    assert (found.sampling.max_completion_length, found.training.learning_rate) == (length, rate)
    assert Recipe.model_validate(found.model_dump(mode="json")) == found
