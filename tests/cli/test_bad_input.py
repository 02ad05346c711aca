"""Every kind of bad input ends in one line with place and fix, exit code 2, and no finished row lost."""

import collections
import contextlib
import hashlib
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from disa.cli.main import main
from disa.runs.locks import exclusive
from disa.tasks.graph_coloring import GraphColoring


class Run:
    """A copy of the finished run, to be damaged."""

    def __init__(self, recipe, path, values, monkeypatch):
        self.recipe, self.path, self.values, self.monkeypatch = recipe, path, values, monkeypatch
        self.holds = contextlib.ExitStack()

    def command(self, name, *settings, run_dir=None):
        settings = [*settings, *([f"run_dir={run_dir}"] if run_dir else [])]
        return [name, str(self.recipe), *(word for setting in settings for word in ("--set", setting))]

    def given_models(self, **changes):
        """Rewrite the recipe for given models, those of the warm-up, copied to where they can be damaged."""
        models = self.path.parent / "models"
        shutil.copytree(self.path / "warmup" / "reference", models)
        values = {k: v for k, v in self.values.items() if k != "warmup"}
        values |= {"models": {"reference": str(models)}, "run_dir": str(self.path.parent / "other")} | changes
        self.recipe.write_text(yaml.safe_dump(values))
        return models

    def edit_table(self, name, edit):
        """Change a Parquet file behind its stage's back."""
        path = self.path / name
        pq.write_table(edit(pq.read_table(path)), path)

    def edit_column(self, name, column, edit, type=None):
        def replace(table):
            values = table.column(column).to_pylist()
            edit(values)
            index = table.column_names.index(column)
            kind = type or table.schema.field(column).type
            return table.set_column(index, pa.field(column, kind), pa.array(values, kind))

        self.edit_table(name, replace)

    def edit_json(self, name, edit):
        path = self.path / name
        values = json.loads(path.read_text())
        edit(values)
        path.write_text(json.dumps(values))

    def reward(self, function):
        self.monkeypatch.setattr(GraphColoring, "reward", function)

    def files(self):
        """Digest of every file, wherever in the run directory it lies: a superseded folder has moved."""
        # Locks, and the note of what they are held for, are no results.
        locks = (".lock", ".work")  # and .worked, a note of times
        files = [p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith(locks)]
        return collections.Counter(hashlib.sha256(p.read_bytes()).hexdigest() for p in files)


@pytest.fixture
def run(finished_run, tmp_path, tiny_recipe, write_recipe, monkeypatch):
    path = tmp_path / "run"
    # Left-over checkpoints and pictures are most of the bytes, and no stage reads them.
    shutil.copytree(finished_run, path, ignore=shutil.ignore_patterns("checkpoints*", "figures"))
    return Run(write_recipe(tiny_recipe | {"run_dir": str(path)}), path, tiny_recipe, monkeypatch)


# A changed setting makes a stage run again, so that it reads the damaged input of a finished one.
AGAIN = {
    "proposals": "proposals.seed=1",
    "scoring": "scoring.parity_bound=0.01",
    "partition": "partition.level=0.8",
    "training": "training.seed=1",
    "evaluation": "evaluation.seed=1",
}
CASES = {}


def case(message):
    """Register a function that damages a run and returns the command; the line must match the message."""

    def register(function):
        CASES[function.__name__.replace("_", " ")] = (function, message)
        return function

    return register


@case(r"none\.yaml: recipe not found")
def missing_recipe(run):
    return ["run", str(run.path / "none.yaml")]


@case(r"recipe\.yaml: not valid YAML .*line 1")
def yaml_error(run):
    run.recipe.write_text("run_dir: a: b")
    return run.command("run")


@case(r"recipe\.yaml, field training\.stepz: unknown key\. Fix: did you mean steps\?")
def unknown_key(run):
    return run.command("run", "training.stepz=3")


@case(r"field inverse_temperature: unknown key\. Fix: did you mean training\.inverse_temperature\?")
def key_of_another_section(run):
    return run.command("run", "inverse_temperature=3")


@case(r"field tasks\.colours: unknown key\. Fix: did you mean colors\?")
def key_of_a_task_misspelt(run):
    return run.command("run", "tasks.colours=3")


@case(r"field training\.temperature: unknown key\. Fix: did you mean sampling\.temperature\?")
def key_of_another_section_that_is_like_one_beside_it(run):
    return run.command("run", "training.temperature=1")


@case(r"--set training=\{steps: 1, steps: 2\}: the value is not valid YAML \(key steps stands twice")
def key_that_stands_twice_in_an_override(run):
    return run.command("run", "training={steps: 1, steps: 2}")


@case(r"recipe\.yaml: not valid YAML \(key training stands twice in .* line \d+")
def key_that_stands_twice(run):
    run.recipe.write_text(run.recipe.read_text() + "training: {steps: 1}\n")
    return run.command("run")


@case(r"recipe\.yaml, field training: steps is true, expected a number")
def truth_value_for_a_number(run):
    return run.command("run", "training.steps=true")


@case(r"recipe\.yaml, field training: steps_of is true, expected a number")
def truth_value_within_a_mapping(run):
    return run.command("run", "training.steps_of={grpo: true}")


@case(r"field training\.seed: .*greater than or equal to 0, found -1")
def negative_seed(run):
    return run.command("run", "training.seed=-1")


@case(r"recipe\.yaml, field training\.steps: .*integer.*found 'many'")
def wrong_type(run):
    return run.command("run", "training.steps=many")


@case(r"command line: --set training\.steps")
def malformed_override(run):
    return run.command("run", "training.steps")


@case(r"recipe\.yaml: the recipe has no warmup section")
def warmup_that_is_not_asked_for(run):
    run.given_models()
    return run.command("warmup")


@case(r"gone: no loadable Hugging Face model")
def missing_model_folder(run):
    run.given_models(models={"reference": str(run.path / "gone")})
    return run.command("run")


@case(r"models: no loadable Hugging Face model or tokenizer")
def model_folder_without_a_tokenizer(run):
    for file in run.given_models().glob("tokenizer*"):
        file.unlink()
    return run.command("run")


@case(r"models: no loadable Hugging Face model or tokenizer")
def model_folder_without_weights(run):
    (run.given_models() / "model.safetensors").unlink()
    return run.command("run")


@case(r"models: no loadable Hugging Face model or tokenizer")
def truncated_weights(run):
    weights = run.given_models() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return run.command("run")


@case(r"models: no loadable Hugging Face model or tokenizer")
def model_configuration_that_is_not_json(run):
    (run.given_models() / "config.json").write_text("{")
    return run.command("run")


@case(r"nobody/nothing: no loadable Hugging Face model")
def unreachable_hub_id(run):
    run.given_models(models={"reference": "nobody/nothing"})
    return run.command("run")


@case(r"train\.parquet, row 2: field 'prompt' is null, expected a string value")
def null_in_a_row(run):
    run.edit_column("1_tasks/train.parquet", "prompt", lambda v: v.__setitem__(2, None))
    return run.command("proposals", AGAIN["proposals"])


@case(r"part-00000000\.parquet, row 5: field 'log_ref' is NaN, expected a double value")
def nan_in_a_row(run):
    run.edit_column("3_scoring/part-00000000.parquet", "log_ref", lambda v: v.__setitem__(5, float("nan")))
    return run.command("partition", AGAIN["partition"])


@case(r"part-000004-reference\.parquet, row 0: field 'completion_ids' is a list with a null")
def null_inside_a_list(run):
    run.edit_column("2_proposals/part-000004-reference.parquet", "completion_ids", lambda v: v[0].__setitem__(0, None))
    return run.command("scoring", AGAIN["scoring"])


@case(r"part-00000000\.parquet: field 'reward' is missing, found prompt_id, ")
def missing_column(run):
    run.edit_table("3_scoring/part-00000000.parquet", lambda t: t.drop_columns("reward"))
    return run.command("partition", AGAIN["partition"])


@case(r"part-00000000\.parquet: field 'reward' has type string, expected double")
def wrong_column_type(run):
    run.edit_column(
        "3_scoring/part-00000000.parquet",
        "reward",
        lambda v: v.__setitem__(slice(None), ["high"] * len(v)),
        pa.string(),
    )
    return run.command("partition", AGAIN["partition"])


@case(r"part-00000000\.parquet: holds Trajectory rows of version 3, expected ScoredTrajectory version 4")
def rows_of_another_stage(run):
    shutil.copy(run.path / "2_proposals/part-000000-reference.parquet", run.path / "3_scoring/part-00000000.parquet")
    return run.command("partition", AGAIN["partition"])


@case(r"part-000002-reference\.parquet: not a readable Parquet file")
def truncated_parquet_file(run):
    path = run.path / "2_proposals/part-000002-reference.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    return run.command("scoring", AGAIN["scoring"])


@case(r"prompt \w+, field payload: expected a JSON object with vertices, colors, edges, found 'oops'")
def payload_that_is_not_json(run):
    run.edit_column("1_tasks/train.parquet", "payload", lambda v: v.__setitem__(slice(None), ["oops"] * len(v)))
    return run.command("scoring", AGAIN["scoring"])


@case(r"partition: prompt \w+ \(train\) has no trajectory")
def prompt_without_a_trajectory(run):
    lost = pq.read_table(run.path / "1_tasks/train.parquet").column("prompt_id")[0]
    run.edit_table(
        "3_scoring/part-00000000.parquet", lambda t: t.filter(pa.compute.not_equal(t.column("prompt_id"), lost))
    )
    return run.command("partition", AGAIN["partition"])


@case(r"partition: no trajectories to estimate log Z from")
def no_trajectory_at_all(run):
    run.edit_table("3_scoring/part-00000000.parquet", lambda t: t.slice(0, 0))
    return run.command("partition", AGAIN["partition"])


@case(r"partition: a trajectory belongs to prompt stranger, which is not among the tasks' prompts")
def trajectory_of_an_unknown_prompt(run):
    run.edit_column("3_scoring/part-00000000.parquet", "prompt_id", lambda v: v.__setitem__(0, "stranger"))
    return run.command("partition", AGAIN["partition"])


@case(r"2_proposals.*prompt stranger")
def trajectory_to_score_of_an_unknown_prompt(run):
    run.edit_column("2_proposals/part-000000-reference.parquet", "prompt_id", lambda v: v.__setitem__(0, "stranger"))
    return run.command("scoring", AGAIN["scoring"])


@case(r"tasks, field train_prompts: only \d+ distinct prompts found")
def more_prompts_than_the_task_has(run):
    return run.command("tasks", "tasks.vertices=3", "tasks.train_prompts=5000")


@case(r"5_anchor: anchor does not fit: inverse_temperature is 2.*, the anchor was estimated for 3")
def anchor_of_another_inverse_temperature(run):
    run.edit_json("5_anchor/manifest.json", lambda m: m["anchor"]["fingerprint"].update(inverse_temperature=3.0))
    return run.command("training", AGAIN["training"])


@case(r"5_anchor: anchor does not fit: temperature is 1.*, the anchor was estimated for 0\.7.*Fix: .*temperature")
def anchor_of_another_temperature(run):
    run.edit_json("5_anchor/manifest.json", lambda m: m["anchor"]["fingerprint"].update(temperature=0.7))
    return run.command("training", AGAIN["training"])


@case(r"5_anchor: anchor does not fit: reference is \w+, the anchor was estimated for \w+")
def anchor_of_another_reference(run):
    # An anchor is a folder anyone can copy: this one comes from a run with another reference.
    run.edit_json("5_anchor/manifest.json", lambda m: m["anchor"]["fingerprint"].update(reference="0" * 16))
    return run.command("training", AGAIN["training"])


@case(r"5_anchor: anchor\.parquet was changed after it was frozen")
def edited_anchor(run):
    run.edit_column("5_anchor/anchor.parquet", "log_z", lambda v: v.__setitem__(0, v[0] + 0.1))
    return run.command("training", AGAIN["training"])


@case(r"2_proposals/manifest\.json: not valid JSON")
def manifest_that_is_not_json(run):
    (run.path / "2_proposals/manifest.json").write_text("{")
    return run.command("run")


@case(r"2_proposals/manifest\.json: .*content")
def manifest_without_its_content(run):
    run.edit_json("2_proposals/manifest.json", lambda m: m.pop("content"))
    return run.command("run")


@case(r"2_proposals/started\.json: not valid JSON")
def start_marker_that_is_not_json(run):
    (run.path / "2_proposals/started.json").write_text("")
    return run.command("proposals", AGAIN["proposals"])


@case(r"task graph_coloring, prompt \w+, field reward: the reward raised ZeroDivisionError")
def reward_that_raises(run):
    run.reward(lambda task, prompt, completion: 1 / 0)
    return run.command("scoring", AGAIN["scoring"])


@case(r"field reward: the reward is None, undecided, for all \d+ completions")
def reward_that_is_none(run):
    run.reward(lambda task, prompt, completion: None)
    return run.command("scoring", AGAIN["scoring"])


@case(r"field reward: the reward is nan, expected a number in \[0\.0, 1\.0\]")
def reward_that_is_nan(run):
    run.reward(lambda task, prompt, completion: float("nan"))
    return run.command("scoring", AGAIN["scoring"])


@case(r"field reward: the reward is 2, expected a number in \[0\.0, 1\.0\]")
def reward_out_of_range(run):
    run.reward(lambda task, prompt, completion: 2)
    return run.command("scoring", AGAIN["scoring"])


@case(r"field reward: the reward is high, expected a number in \[0\.0, 1\.0\]")
def reward_that_is_text(run):
    run.reward(lambda task, prompt, completion: "high")
    return run.command("scoring", AGAIN["scoring"])


@case(r"field reward: the reward raised ZeroDivisionError")
def reward_that_raises_in_training(run):
    run.reward(lambda task, prompt, completion: 1 / 0)
    return run.command("training", AGAIN["training"])


@case(r"warmup: no demonstration fits sampling\.max_completion_length 3")
def no_demonstration_that_fits(run):
    return run.command("warmup", "sampling.max_completion_length=3")


@case(r"training\.prompts_per_step is \d+, but (disa|grpo) has 2 training prompts: lower it, or give more prompts")
def fewer_prompts_than_a_step_takes(run):
    return run.command("run", "tasks.train_prompts=2", run_dir=run.path.parent / "other")


@case(r"warmup: no demonstration fits")
def no_demonstration_at_all(run):
    return run.command("run", "tasks.warmup_prompts=0", run_dir=run.path.parent / "other")


@case(r"tasks: prompt of \d+ tokens plus sampling\.max_completion_length 7 exceeds the model's context of 16")
def prompt_longer_than_the_context(run):
    return run.command("warmup", "warmup.small_model.context_length=16")


@case(r"prompt \w+, reference: prompt of \d+ tokens plus .* exceeds the model's context of 20")
def prompt_longer_than_a_given_model_s_context(run):
    config = run.given_models() / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 20}))
    return run.command("run")


@case(r"models: prompt '.*Ω.*' has a character the tokenizer does not know")
def character_outside_the_alphabet(run):
    run.given_models(tasks=run.values["tasks"] | {"prompt_template": "Ω{edges}/{colors}:"})
    return run.command("run")


@case(r"sampling\.conversational is true but the tokenizer has no chat template")
def missing_chat_template(run):
    return run.command("run", "sampling.conversational=true")


@case(r"run: another disa process is working in this run directory")
def locked_run_directory(run):
    run.holds.enter_context(exclusive(run.path))
    return run.command("run")


@case(r"recipe\.yaml/run: cannot make the run directory \(Not a directory\)")
def run_directory_below_a_file(run):
    return run.command("run", run_dir=run.recipe / "run")


@case(r"\.lock: Is a directory")
def run_directory_whose_lock_cannot_be_opened(run):
    (run.path / ".lock").unlink()
    (run.path / ".lock").mkdir()
    return run.command("run")


@case(r"1_tasks: stage tasks has no finished output for this recipe.*Fix: run 'disa tasks RECIPE' first")
def stage_whose_inputs_are_not_finished(run):
    return run.command("scoring", run_dir=run.path.parent / "other")


@case(r"2_proposals: stage proposals has no finished output for this recipe")
def stage_whose_inputs_are_of_another_recipe(run):
    return run.command("scoring", AGAIN["proposals"])


@case(r"3_scoring, field scoring\.parity_bound: sampler and scorer disagree on \w+ draws by .* bound 1e-12")
def parity_bound_exceeded(run):
    return run.command("scoring", "scoring.parity_bound=1.0e-12")


@case(r"1_tasks: neither an anchor nor a run directory with a finished anchor stage")
def inspect_on_something_else(run):
    return ["inspect", str(run.path / "1_tasks")]


@case(r"5_anchor/manifest\.json: no anchor here")
def inspect_on_an_anchor_without_manifest(run):
    (run.path / "5_anchor/manifest.json").unlink()
    return ["inspect", str(run.path)]


@case(r"manifest\.json: not an anchor's manifest")
def inspect_on_another_stage_s_manifest(run):
    shutil.copy(run.path / "4_partition/manifest.json", run.path / "5_anchor/manifest.json")
    return ["inspect", str(run.path)]


@case(r"5_anchor/manifest\.json: not an anchor's manifest")
def inspect_on_an_anchor_that_lacks_a_fingerprint_field(run):
    run.edit_json("5_anchor/manifest.json", lambda m: m["anchor"]["fingerprint"].pop("reward"))
    return ["inspect", str(run.path)]


@case(r"recipe\.yaml: File exists")
def figures_into_a_file(run):
    return ["inspect", str(run.path), "--figures", str(run.recipe)]


@pytest.mark.parametrize(("damage", "message"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_one_line_with_place_and_fix_and_loses_nothing(damage, message, run, capsys):
    arguments = damage(run)
    before = run.files()
    with run.holds:
        code = main(arguments)
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert re.search(message, printed.err), printed.err
    assert printed.err.startswith("disa: ")
    assert "Fix: " in printed.err
    assert "Traceback" not in printed.err + printed.out
    assert code == 2
    lost = before - run.files()
    assert not lost


def test_debug_adds_the_traceback(run, capsys):
    run.reward(lambda task, prompt, completion: 1 / 0)
    assert main([*run.command("scoring", AGAIN["scoring"]), "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "ZeroDivisionError" in error
    assert error.splitlines()[-1].startswith("disa: task graph_coloring, prompt ")


def test_after_the_correction_the_run_goes_on_where_it_stopped(run, capsys):
    with run.monkeypatch.context() as broken:
        broken.setattr(GraphColoring, "reward", lambda task, prompt, completion: 2)
        assert main(run.command("scoring", AGAIN["scoring"])) == 2
    capsys.readouterr()
    assert main(run.command("scoring", AGAIN["scoring"])) == 0
    old = next((run.path / "superseded").iterdir()) / "part-00000000.parquet"
    assert pq.read_table(run.path / "3_scoring/part-00000000.parquet").equals(pq.read_table(old))
