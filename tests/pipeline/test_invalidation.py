"""The table of docs/architecture.md: a change reruns exactly the stages it names."""

import dataclasses
import json
import shutil

import pytest
from test_pipeline import FOLDERS

from disa.config import StageConfig
from disa.partition.config import PartitionConfig
from disa.pipeline import Pipeline
from disa.recipe import Recipe, load_recipe
from disa.runs.folders import StageFolder
from disa.tasks.graph_coloring import GraphColoring

DISA = ["6_training/disa", "7_evaluation/disa", "8_report"]
GRPO = ["6_training/grpo", "7_evaluation/grpo", "8_report"]
TRAINED = [*DISA, *GRPO]
FROM_PARTITION = ["4_partition", "5_anchor", *DISA]
FROM_SCORING = ["3_scoring", *FROM_PARTITION]
FROM_PROPOSALS = ["2_proposals", *FROM_SCORING]
NUMBERED = [name for name in FOLDERS if name not in ("1_tasks", "warmup")]


class Imagined(StageFolder):
    """A stage that is done without work and without a file; its content is its fingerprint alone."""

    content = property(lambda self: self.fingerprint)
    manifest = {"seconds": 0.0}
    finished = False

    def begin(self):
        pass

    def finish(self, **facts):
        pass


class WithoutWork(Pipeline):
    """The pipeline's decisions, the stages' work left out."""

    def _check(self):
        pass

    def _stage(self, stage):
        return super()._stage(dataclasses.replace(stage, work=lambda folder: folder.finish(), says=lambda folder: []))


def fingerprints(recipe):
    """Every stage's fingerprint: a stage runs again exactly when its own is another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("disa.pipeline.StageFolder", Imagined)
        pipeline = WithoutWork(recipe, say=lambda line: None)
        pipeline.run()
    return {folder: stage.fingerprint for folder, stage in pipeline._done.items()}


def ran(recipe):
    """Folders whose stages did their work, in a run directory on disk."""
    lines = []
    WithoutWork(recipe, say=lines.append).run()
    return {line.split(":")[0] for line in lines if "done in" in line}


def changes(path):
    """Against the recipe as it stands: the folders that run again with some settings changed."""
    before = fingerprints(load_recipe(path))

    def run(*settings):
        after = fingerprints(load_recipe(path, list(settings)))
        return {folder for folder, fingerprint in after.items() if before.get(folder) != fingerprint}

    assert run() == set()
    return run


@pytest.fixture
def recipe_file(tiny_recipe, write_recipe, tmp_path):
    return write_recipe(tiny_recipe | {"run_dir": str(tmp_path / "run")})


@pytest.fixture
def run(recipe_file):
    """The folders of the tiny recipe that run again with some settings changed."""
    return changes(recipe_file)


@pytest.fixture
def run_given(tiny_recipe, write_recipe, tmp_path):
    """The same with given models, two folders that may be changed."""
    values = {k: v for k, v in tiny_recipe.items() if k != "warmup"} | {"run_dir": str(tmp_path / "run")}
    models = {name: tmp_path / name for name in ("reference", "proposal")}
    for name, folder in models.items():
        folder.mkdir()
        (folder / "weights").write_text(name)
    path = write_recipe(values | {"models": {name: str(folder) for name, folder in models.items()}})
    return models, changes(path)


# The first column of the table, one changed setting after another, and the folders that run again.
ROWS = {
    "`tasks.*`, or a task's `version`": (["tasks.seed=1", "tasks.colors=3", "tasks.heldout_prompts=4"], FOLDERS),
    "`warmup.*`, `sampling.*`": (
        [
            "warmup.seed=1",
            "warmup.reference.noise=0.4",
            "warmup.proposal.steps=61",
            "warmup.small_model.layers=2",
            "sampling.temperature=0.9",
            "sampling.max_completion_length=8",
        ],
        ["warmup", *NUMBERED],
    ),
    "`proposals.resample`": (
        ["proposals.resample={rounds: 1}"],
        ["2_proposals/round-1", "3_scoring/round-1", *FROM_PARTITION],
    ),
    "`models.proposal`, other `proposals.*`": (
        ["proposals.seed=1", "proposals.per_prompt=17", "proposals.reference_share=0.5"],
        FROM_PROPOSALS,
    ),
    "`scoring.*`": (["scoring.parity_bound=0.01", "scoring.compute=bfloat16"], FROM_SCORING),
    "`partition.*`, `training.inverse_temperature`": (
        ["partition.method=is", "partition.level=0.8", "training.inverse_temperature=3"],
        FROM_PARTITION,
    ),
    "`training.prompts`, `baseline`, `baseline_prior_strength`, `length_scale`, `residual_clip`, `flagged`, "
    "`offline_share`, `offline_weight_cap`, "
    "`offline_weight_tail`, `weight_cap`, `min_ess`, `replay_share`, `replay_generations`": (
        [
            "training.prompts=signal",
            "training.baseline=none",
            "training.baseline_prior_strength=2",
            "training.length_scale=2",
            "training.residual_clip=5",
            "training.flagged=group",
            "training.offline_share=0.5",
            "training.offline_weight_cap=9",
            "training.offline_weight_tail=pareto",
            "training.weight_cap=3",
            "training.min_ess=0.1",
            "training.replay_share=0.25",
            "training.replay_generations=2",
        ],
        DISA,
    ),
    "`training.steps_of.grpo`, `steps_per_completion_of.grpo`, `learning_rates.grpo`": (
        ["training.steps_of.grpo=5", "training.steps_per_completion_of.grpo=2", "training.learning_rates.grpo=0.002"],
        GRPO,
    ),
    "other `training.*`, such as `steps`, `learning_rate`, `seed`": (
        [
            "training.steps=5",
            "training.steps_per_completion=2",
            "training.learning_rate=0.002",
            "training.seed=1",
            "training.lora={rank: 2}",
        ],
        TRAINED,
    ),
    "`evaluation.*`, also `ks`": (
        ["evaluation.seed=1", "evaluation.ks=[1]", "evaluation.samples_per_prompt=5"],
        [name for name in FOLDERS if name.startswith(("7", "8"))],
    ),
    "a `speed_only` field, `run_dir`": (
        [
            "warmup.log_every=7",
            "proposals.batch_size=5",
            "proposals.prompts_per_part=5",
            "scoring.tokens_per_batch=999",
            "scoring.trajectories_per_part=5",
            "training.save_every=3",
            "training.log_every=2",
            "evaluation.batch_size=5",
            "evaluation.prompts_per_part=5",
        ],
        [],
    ),
}
# Rows that need more than a changed setting have a test of their own below.
ELSEWHERE = {"`models.reference`", "`training.methods`"}


def test_every_row_of_the_documented_table_is_checked(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "architecture.md").read_text()
    table = text.split("| change | stages that run again |")[1].split("\n\n")[0]
    documented = {line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]}
    assert documented == ROWS.keys() | ELSEWHERE


@pytest.mark.parametrize("row", ROWS)
def test_a_change_reruns_exactly_the_documented_stages(row, run):
    settings, expected = ROWS[row]
    for setting in settings:
        assert run(setting) == set(expected), setting


def test_the_rounds_of_an_adaptive_budget_follow_its_settings_and_the_target(tiny_recipe, write_recipe, tmp_path):
    budget = {"proposals": tiny_recipe["proposals"] | {"adaptive": {"pilot": 4, "rounds": 1}}}
    run = changes(write_recipe(tiny_recipe | budget | {"run_dir": str(tmp_path / "run")}))
    rounds = {"2_proposals/round-1", "3_scoring/round-1"}
    assert run("training.inverse_temperature=3") == {*rounds, *FROM_PARTITION}
    assert run("scoring.parity_bound=0.01") == {*rounds, *FROM_SCORING}
    for setting in ("pilot=5", "cap=100", "precision=0.2"):
        assert run(f"proposals.adaptive.{setting}") == {*rounds, *FROM_PROPOSALS}, setting
    more = {"2_proposals/round-2", "3_scoring/round-2"}
    assert run("proposals.adaptive.rounds=2") == {*rounds, *more, *FROM_PROPOSALS}


def test_a_task_s_version_reruns_everything(run, monkeypatch):
    monkeypatch.setattr(GraphColoring, "version", GraphColoring.version + 1)
    assert run() == set(FOLDERS)


def test_a_comparison_leaves_a_run_s_stages_as_they_are(run):
    assert run("comparison.methods=[disa,sft]") == set()


def test_another_reward_range_reruns_from_scoring_and_all_that_is_judged_by_it(run, monkeypatch):
    monkeypatch.setattr(GraphColoring, "reward_range", (0.0, 2.0))
    assert run() == {*FROM_SCORING, *GRPO, "7_evaluation/reference"}


@pytest.mark.parametrize("stage", ["proposals", "scoring", "partition", "training", "evaluation", "report"])
def test_a_raised_code_version_reruns_its_stage_and_what_depends_on_it(stage, run, monkeypatch):
    module = {"partition": "partition.stage", "report": "report.stage"}.get(stage, f"{stage}.run")
    monkeypatch.setattr(f"disa.{module}.VERSION", 99)
    evaluation = ["7_evaluation/reference", "7_evaluation/disa", "7_evaluation/grpo", "8_report"]
    expected = {
        "proposals": FROM_PROPOSALS,
        "scoring": FROM_SCORING,
        "partition": FROM_PARTITION,
        "training": TRAINED,
        "evaluation": evaluation,
        "report": ["8_report"],
    }
    assert run() == set(expected[stage])


def test_a_changed_reference_reruns_all_but_the_tasks(run_given):
    models, run = run_given
    assert run(f"models.reference={models['proposal']}") == set(NUMBERED)
    assert run("models.reference=owner/name") == set(NUMBERED)
    (models["reference"] / "weights").write_text("changed")
    assert run() == set(NUMBERED)


def test_a_changed_proposal_reruns_what_the_trajectories_enter(run_given):
    models, run = run_given
    assert run("models.proposal=null") == set(FROM_PROPOSALS)
    assert run("models.proposal=owner/name") == set(FROM_PROPOSALS)
    (models["proposal"] / "weights").write_text("changed")
    assert run() == set(FROM_PROPOSALS)


def test_the_name_of_a_model_folder_does_not_matter(run_given, tmp_path):
    models, run = run_given
    shutil.copytree(models["reference"], tmp_path / "moved")
    assert run(f"models.reference={tmp_path / 'moved'}") == set()


def test_a_method_left_out_changes_the_report_alone(run):
    assert run("training.methods=[disa]") == {"8_report"}
    assert run("training.methods=[grpo]") == {"8_report"}


def test_a_method_added_later_is_trained_and_evaluated(recipe_file):
    assert ran(load_recipe(recipe_file, ["training.methods=[disa]"])) == set(FOLDERS) - set(GRPO) | {"8_report"}
    assert ran(load_recipe(recipe_file)) == set(GRPO)


def test_a_moved_run_directory_reruns_nothing(recipe_file, tmp_path):
    assert ran(load_recipe(recipe_file)) == set(FOLDERS)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert ran(load_recipe(recipe_file, [f"run_dir={tmp_path / 'moved'}"])) == set()


def test_what_runs_again_on_disk_is_what_the_fingerprints_say_and_going_back_keeps_both(recipe_file, tmp_path):
    assert ran(load_recipe(recipe_file)) == set(FOLDERS)
    assert ran(load_recipe(recipe_file, ["partition.level=0.8"])) == set(FROM_PARTITION)
    assert ran(load_recipe(recipe_file)) == set(FROM_PARTITION)
    attic = tmp_path / "run" / "superseded"
    kept = sorted(p.name for p in attic.iterdir() if p.name.startswith("4_"))
    assert kept == ["4_partition.0", "4_partition.1"]
    manifests = [json.loads((attic / name / "manifest.json").read_text()) for name in kept]
    assert [m["configuration"]["partition"]["level"] for m in manifests] == [PartitionConfig().level, 0.8]


def fields(config, prefix=""):
    """Every setting of a recipe by its path, with its value and whether it is declared speed-only."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, StageConfig):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, bool((field.json_schema_extra or {}).get("speed_only"))


# Settings whose other valid value does not follow from their own, or that have only one.
OTHER = {
    "tasks.prompt_template": "'{edges}/{colors}?'",
    "tasks.edge_probability": "0.4",
    "warmup.base": "smollm2",
    "warmup.small_model.hidden_size": "32",
    "warmup.small_model.heads": "4",
    "warmup.reference.start": "proposal",
    "sampling.system_prompt": None,
    # Of conversations, which the tiny model has none of; tests/calibration covers them.
    "sampling.messages": None,
    "sampling.chat_template_kwargs": None,
    "sampling.conversational": "true",
    "sampling.top_p": None,
    "sampling.top_k": None,
    "proposals.source": "tempered",
    "proposals.blend.lambdas": "[0.4]",
    "proposals.blend.temperatures": "[1.3]",
    "proposals.blend.hint": "'{prompt} {solution}'",
    "proposals.adaptive": "{pilot: 4}",
    "proposals.resample": "{rounds: 1}",
    # Engines that are not at hand; tests/proposals and tests/pipeline/test_imported_run.py cover them.
    "proposals.engine": None,
    "proposals.vllm": None,
    "proposals.openai": None,
    "proposals.files": None,
    "training.vllm": None,
    "partition.method": "is",
    "partition.interval": "betting",
    "training.methods": None,
    "training.steps_of": "{grpo: 9}",
    "training.steps_per_completion_of": "{grpo: 2}",
    "training.learning_rates": "{grpo: 0.01}",
    "training.offline_weight_tail": "pareto",
    "training.flagged": "group",
    # Settings of methods that the tiny recipe does not train; tests/training_methods covers them.
    "training.log_z_learning_rate": None,
    "training.value_samples": None,
    "training.gflowrl_clip": None,
    "training.report_to": None,  # declared speed-only; tests/training/test_reports.py covers it
    "training.micro_batch": "4",
    "training.schedule": "linear",
    "training.baseline": "none",
    "training.prompts": "signal",
    "training.residual_clip": "5",
    "training.optim": "adamw_torch",
    "training.lora": "{rank: 2}",
    "evaluation.ks": "[1]",
    "models.reference": None,
    "models.proposal": None,
    "models.device_map": None,  # a placement of several devices
    "scoring.parity_bound": 0.01,
    "tasks.name": None,
    "warmup.proposal.start": None,
    # Read by disa compare alone, whose policies have folders of their own.
    "comparison": None,
    "study": None,
    "verl": None,
}


def other_value(name, value):
    if name in OTHER:
        return OTHER[name]
    if value in ("float32", "checkpoint"):
        return "bfloat16"
    return str(value + 1) if isinstance(value, int) else str(value * 0.9 + 0.01)


def test_every_setting_that_is_not_declared_speed_only_invalidates_something(run, tiny_recipe, write_recipe):
    recipe = Recipe.model_validate(tiny_recipe)
    tried = 0
    for name, value, speed_only in fields(recipe):
        if name != "run_dir" and (other := other_value(name, value)) is not None:
            assert bool(run(f"{name}={other}")) != speed_only, name
            tried += 1
    assert tried > 50
