"""A data set, reward functions and models become the anchor that a recipe would have made."""

import functools
import json

import pytest
import yaml
from datasets import Dataset

import disa
from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, ScoredTrajectory
from disa.tasks import make_task
from disa.tasks.config import GraphColoringConfig
from disa.tasks.reward_functions import RewardFunctions


@pytest.fixture(scope="module")
def prompts(finished_run):
    rows = [row for path in (finished_run / "1_tasks").glob("*.parquet") for row in read_rows(path, Prompt)]
    return [row for row in rows if row.split in ("train", "heldout")]


@pytest.fixture(scope="module")
def task(finished_run):
    recipe = yaml.safe_load((finished_run.parent / "recipe.yaml").read_text())
    return make_task(GraphColoringConfig(**recipe["tasks"]))


def rows_of(prompts, split):
    return [{"prompt": p.prompt, "payload": p.payload, "key": p.prompt_id} for p in prompts if p.split == split]


def reward_of(task):
    def reward(prompts, completions, payload, **_):
        records = [Prompt("", task.name, "train", p, g, None) for p, g in zip(prompts, payload, strict=True)]
        return task.rewards(records, completions)

    reward.fingerprint = "colouring/1"  # it holds a task, which is no plain value
    return reward


def configure(folder, **changed):
    own = {"inverse_temperature": 2.0, "num_generations": 16, "num_generations_eval": 8, "max_completion_length": 7}
    return disa.CalibrationConfig(str(folder), **own | changed)


def anchor_of(folder, finished_run, prompts, task, reward=None, **changed):
    models = finished_run / "warmup"
    return disa.calibrate(
        str(models / "reference"),
        reward or reward_of(task),
        rows_of(prompts, "train"),
        configure(folder, **changed),
        proposal=str(models / "proposal"),
        eval_dataset=rows_of(prompts, "heldout"),
    )


def test_it_equals_the_anchor_of_a_recipe_estimate_by_estimate(tmp_path, finished_run, prompts, task, monkeypatch):
    # A trajectory's random numbers follow from its prompt's id: with the recipe's ids the draws are the recipe's.
    monkeypatch.setattr("disa.tasks.python_rows.prompt_key", lambda row, key_columns: row["key"])
    anchor = anchor_of(tmp_path / "anchor", finished_run, prompts, task)
    recipe = disa.Anchor.load(finished_run / "5_anchor")
    assert anchor.estimates == recipe.estimates
    assert len(anchor.estimates) == 9
    conditions = anchor.fingerprint.as_dict()
    assert {k for k, v in recipe.fingerprint.as_dict().items() if v != conditions[k]} == {"reward", "task"}


def test_ids_follow_from_prompt_and_columns(tmp_path, finished_run, prompts, task):
    anchor = anchor_of(tmp_path / "anchor", finished_run, prompts, task, num_generations=4, num_generations_eval=4)
    again = anchor_of(tmp_path / "b", finished_run, prompts[::-1], task, num_generations=4, num_generations_eval=4)
    assert dict(again.estimates) == dict(anchor.estimates)
    assert anchor.key_columns == ("payload", "key")
    other = anchor_of(tmp_path / "c", finished_run, prompts, task, num_generations=4, key_columns=["payload"])
    assert not set(other.estimates) & set(anchor.estimates)
    assert other.key_columns == ("payload",)


def test_its_folder_is_a_run_directory_that_inspect_reads(tmp_path, finished_run, prompts, task, capsys):
    from disa.cli.inspect import inspect_path

    anchor = anchor_of(tmp_path / "anchor", finished_run, prompts, task)
    rows = [r for f in (tmp_path / "anchor" / "3_scoring").glob("*.parquet") for r in read_rows(f, ScoredTrajectory)]
    assert len(rows) == 6 * 16 + 3 * 8
    assert {r.prompt_id for r in rows} == set(anchor.estimates)
    capsys.readouterr()
    assert inspect_path(str(tmp_path / "anchor"), as_json=True, figures=None) == 0
    assert json.loads(capsys.readouterr().out)["anchor"].endswith("5_anchor")


def test_a_second_call_draws_nothing_again(tmp_path, finished_run, prompts, task):
    first = anchor_of(tmp_path / "anchor", finished_run, prompts, task)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "anchor").rglob("*.parquet")}
    assert anchor_of(tmp_path / "anchor", finished_run, prompts, task).estimates == first.estimates
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "anchor").rglob("*.parquet")} == before


def test_a_model_in_memory_is_the_model_in_its_folder(tmp_path, finished_run, prompts, task, model, tokenizer):
    rows, reward = rows_of(prompts, "train"), reward_of(task)
    from_memory = disa.calibrate(model, reward, rows, configure(tmp_path / "a"), processing_class=tokenizer)
    folder = str(finished_run / "warmup" / "reference")
    from_folder = disa.calibrate(folder, reward, rows, configure(tmp_path / "b"))
    assert from_memory.estimates == from_folder.estimates
    assert from_memory.fingerprint == from_folder.fingerprint
    assert all(row.method == "mixture" and row.n == row.n_reference == 16 for row in from_memory.estimates.values())


class Halves:
    """A reward that is an object."""

    fingerprint = "halves/1"

    def __call__(self, completions, **_):
        return [0.5 for _ in completions]


async def ones(completions, **_):
    """A reward that is a coroutine."""
    return [1.0 for _ in completions]


def scaled(completions, by, **_):
    """A reward that gets a fixed argument."""
    return [by for _ in completions]


def test_rewards_are_what_trl_takes(tmp_path, finished_run, prompts, task):
    def never(**_):
        raise AssertionError("a function of weight 0 is for logging")

    never.fingerprint = "never"

    rewards, weights = [Halves(), ones, functools.partial(scaled, by=0.5), never], [1.0, 0.25, 0.5, 0.0]
    anchor_of(
        tmp_path / "a", finished_run, prompts, task, rewards, reward_weights=weights, num_generations=4, adaptive=None
    )
    rows = [r for f in (tmp_path / "a" / "3_scoring").glob("*.parquet") for r in read_rows(f, ScoredTrajectory)]
    assert {row.reward for row in rows} == {0.5 + 0.25 + 0.25}


def test_none_from_one_of_two_functions_is_undecided_and_not_zero(tmp_path, finished_run, prompts, task):
    own = reward_of(task)

    def unsure(completions, **_):
        return [None if c.startswith("3") else 0.0 for c in completions]

    anchor_of(tmp_path / "a", finished_run, prompts, task, [own, unsure])
    rows = [r for f in (tmp_path / "a" / "3_scoring").glob("*.parquet") for r in read_rows(f, ScoredTrajectory)]
    undecided = [row for row in rows if row.completion.startswith("3")]
    assert 0 < len(undecided) < len(rows)
    assert all((row.reward is None) == row.completion.startswith("3") for row in rows)


@pytest.mark.parametrize(("returned", "found"), [(None, "no"), ([1.0], "1")])
def test_a_reward_function_that_returns_nothing_or_too_little_is_named(returned, found):
    def reward(completions, **columns):
        return returned

    judge = RewardFunctions(reward, None)
    with pytest.raises(DisaError, match=f"reward function .*: {found} rewards for 2 completions.*Fix: return one"):
        judge(["a", "b"], ["1", "2"], {}, [[1], [2]])


def test_messages_and_template_arguments_are_part_of_the_law(tmp_path, finished_run, prompts, task):
    from disa.lm.loading import load_tokenizer

    folder = finished_run / "warmup" / "reference"
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ending }}"
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows_of(prompts, "train")]

    def anchored(name, **changed):
        args = configure(tmp_path / name, num_generations=4, **changed)
        reward = functools.partial(scaled, by=1.0)
        return disa.calibrate(str(folder), reward, rows, args, processing_class=tokenizer)

    ending = rows[0]["prompt"][0]["content"][-1]
    plain, ended = anchored("plain"), anchored("ended", chat_template_kwargs={"ending": ending})
    assert plain.fingerprint.chat_template != ended.fingerprint.chat_template
    drawn = [
        read_rows(next((tmp_path / n / "3_scoring").glob("*.parquet")), ScoredTrajectory) for n in ("plain", "ended")
    ]
    assert [r.log_ref for r in drawn[0]] != [r.log_ref for r in drawn[1]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_generations": 0}, "CalibrationConfig, field num_generations: .*greater than or equal to 1, found 0"),
        ({"temperature": 0}, "field temperature: .*greater than 0"),
        ({"reward_weights": [1.0, 2.0]}, "2 reward weights for 1 reward functions"),
        ({"key_columns": ["answer"]}, "column 'answer' is missing, found prompt, payload, key"),
        ({"compute": "float16"}, "field compute"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_drawn(tmp_path, finished_run, prompts, task, changed, message):
    with pytest.raises(DisaError, match=message):
        anchor_of(tmp_path / "a", finished_run, prompts, task, **changed)
    assert not (tmp_path / "a" / "2_proposals").exists()


def test_a_reward_without_source_code_asks_for_a_fingerprint(tmp_path, finished_run, prompts, task):
    made = {}
    exec("def reward(completions, **_):\n    return [0.0] * len(completions)", made)
    with pytest.raises(DisaError, match="what reward function reward computes cannot be told.*attribute fingerprint"):
        anchor_of(tmp_path / "a", finished_run, prompts, task, made["reward"])
    made["reward"].fingerprint = "zero/1"
    anchor = anchor_of(tmp_path / "a", finished_run, prompts, task, made["reward"], num_generations=4)
    assert anchor.fingerprint.reward == "zero/1"


def test_rows_that_are_none_and_models_without_tokenizer_are_refused(tmp_path, model, task):
    with pytest.raises(DisaError, match="train_dataset has no rows"):
        disa.calibrate("x", reward_of(task), [], configure(tmp_path))
    with pytest.raises(DisaError, match="brings no tokenizer.*processing_class"):
        disa.calibrate(model, reward_of(task), [{"prompt": "a"}], configure(tmp_path))


def test_the_estimates_are_those_of_the_public_estimator(tmp_path, finished_run, prompts, task):
    anchor = anchor_of(tmp_path / "a", finished_run, prompts, task)
    rows = anchor.trajectories()
    ids = sorted(anchor.estimates)
    batch = disa.estimate_log_partition_batch(
        [r.reward for r in rows],
        prompt_index=[ids.index(r.prompt_id) for r in rows],
        log_ref=[r.log_ref for r in rows],
        log_proposal=[r.log_proposal for r in rows],
        from_reference=[r.source == "reference" for r in rows],
        lengths=[len(r.completion_ids) for r in rows],
        beta=2.0,
    )
    # The same float64 sums in another order of rows and prompts.
    assert batch.log_z == pytest.approx([anchor.estimates[i].log_z for i in ids], abs=1e-9)


def stop_and_length(completion_ids, **_):
    """A reward of token ids alone: whether the last one is the stop token, and how many there are."""
    return [0.5 * (ids[-1] == 1) + len(ids) / 16 for ids in completion_ids]


def test_a_reward_function_is_given_the_token_ids_that_were_drawn_as_in_training(tmp_path, finished_run, prompts, task):
    anchor = anchor_of(tmp_path / "a", finished_run, prompts, task, stop_and_length)
    rows = anchor.trajectories()
    assert [row.reward for row in rows] == stop_and_length([row.completion_ids for row in rows])
    assert {row.truncated for row in rows} == {row.reward < 0.5 for row in rows} == {True, False}
    args = trainer_arguments(False, 1) | {"max_steps": 1, "num_generations": 4, "per_device_train_batch_size": 24}
    reference, rows = str(finished_run / "warmup" / "reference"), Dataset.from_list(rows_of(prompts, "train"))
    trainer = disa.DISATrainer(reference, stop_and_length, anchor, disa.DISAConfig(str(tmp_path / "p"), **args), rows)
    trainer.train()
    assert 1 / 16 < trainer.state.log_history[0]["rewards/stop_and_length/mean"] < 1


def test_what_is_no_reward_function_is_refused(tmp_path, finished_run, prompts, task):
    with pytest.raises(DisaError, match="3 is no reward function.*sequence classifiers"):
        anchor_of(tmp_path / "a", finished_run, prompts, task, 3)
