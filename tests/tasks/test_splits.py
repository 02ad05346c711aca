"""Splits share no problem, whatever order, labels, seed or text it is written in."""

import itertools
import json

import pytest
from pydantic import TypeAdapter

from disa.errors import DisaError
from disa.runs.records import Prompt
from disa.tasks import SPLITS, TaskSection, make_task
from disa.tasks import task as task_module
from disa.tasks.config import CountdownConfig, GraphColoringConfig
from disa.tasks.task import read_payload


def task_of(name, **changes):
    sizes = {"train_prompts": 20, "validation_prompts": 8, "heldout_prompts": 10, "warmup_prompts": 25}
    if name == "countdown":
        # Few numbers: many draws are the same problem, so that an overlap has every chance to show.
        return make_task(CountdownConfig(**{"name": name, "high": 7, "max_target": 20, **sizes, **changes}))
    return make_task(GraphColoringConfig(**{"name": name, "vertices": 6, **sizes, **changes}))


def problem(task, row):
    """What a prompt asks, in a form that knows no order and no labels, computed without the task."""
    payload = json.loads(row.payload)
    if task.name == "countdown":
        return tuple(sorted(payload["numbers"])), payload["target"]
    n, edges = payload["vertices"], payload["edges"]
    return min(
        tuple(sorted(tuple(sorted((names[a], names[b]))) for a, b in edges))
        for names in itertools.permutations(range(n))
    )


def problems(task, split):
    return {problem(task, row) for row in task.prompts(split)}


NAMES = ["countdown", "graph_coloring"]


@pytest.mark.parametrize("name", NAMES)
def test_no_problem_stands_in_two_splits(name):
    task = task_of(name)
    by_split = {split: problems(task, split) for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not by_split[a] & by_split[b]


@pytest.mark.parametrize("name, other_seed", list(itertools.product(NAMES, [1, 2])))
def test_no_problem_changes_its_split_with_the_seed(name, other_seed):
    task, other = task_of(name), task_of(name, seed=other_seed)
    assert {row.prompt for row in task.prompts("train")} != {row.prompt for row in other.prompts("train")}
    for a, b in itertools.permutations(SPLITS, 2):
        assert not problems(task, a) & problems(other, b)


def test_no_problem_changes_its_split_with_the_task_around_it():
    """A wider range, other operators, another template: the numbers and the target are still the same problem."""
    task = task_of("countdown")
    others = [
        task_of("countdown", **c)
        for c in ({"high": 9}, {"operators": "+-"}, {"prompt_template": "{numbers} to {target}"})
    ]
    for other in others:
        assert set().union(*(problems(task, s) for s in SPLITS)) & set().union(*(problems(other, s) for s in SPLITS))
        for a, b in itertools.permutations(SPLITS, 2):
            assert not problems(task, a) & problems(other, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(40, 0, 20, 0), (5, 5, 5, 5), (40, 1, 2, 30)])
def test_splits_have_the_sizes_asked_for_and_share_nothing_at_any_sizes(name, sizes):
    changes = dict(zip((f"{split}_prompts" for split in SPLITS), sizes, strict=True))
    # A split of one prompt needs a space with more than a few dozen problems.
    task = task_of(name, **changes, **({"vertices": 7} if name == "graph_coloring" else {}))
    assert [len(task.prompts(split)) for split in SPLITS] == list(sizes)
    texts = [row.prompt for split in SPLITS for row in task.prompts(split)]
    identities = [{task.identity(json.loads(row.payload)) for row in task.prompts(split)} for split in SPLITS]
    assert len(set(texts)) == sum(sizes)
    assert len(set().union(*identities)) == sum(map(len, identities))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_configuration_gives_the_same_prompts_and_another_seed_others(name):
    rows = [task_of(name).prompts("train") for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0] != task_of(name, seed=1).prompts("train")


def test_equal_text_has_an_equal_id_in_every_run_and_ids_are_unique():
    a, b = (task_of("countdown", seed=seed) for seed in (0, 1))
    ids = [{row.prompt: row.prompt_id for s in SPLITS for row in task.prompts(s)} for task in (a, b)]
    shared = ids[0].keys() & ids[1].keys()
    assert shared
    assert all(ids[0][text] == ids[1][text] for text in shared)
    assert len(set(ids[0].values())) == len(ids[0])


@pytest.mark.parametrize(
    "config",
    [
        CountdownConfig(name="countdown", high=2, max_target=5, train_prompts=500, warmup_prompts=0),
        GraphColoringConfig(name="graph_coloring", vertices=3, train_prompts=500, warmup_prompts=0),
    ],
    ids=NAMES,
)
def test_more_prompts_than_there_are_is_an_error_that_says_how_many_exist_and_what_to_do(config, monkeypatch):
    # Enough draws to find each of a dozen problems; the full patience only takes longer.
    monkeypatch.setattr(task_module, "_PATIENCE", 2000)
    with pytest.raises(DisaError) as error:
        make_task(config).prompts("train")
    assert "distinct prompts found for split train, 500 asked" in str(error.value)
    assert "tasks, field train_prompts" in str(error.value)
    assert "Fix: ask for fewer prompts" in str(error.value)


def test_a_task_without_any_valid_instance_is_an_error_too(monkeypatch):
    monkeypatch.setattr(task_module, "_PATIENCE", 200)
    config = CountdownConfig(name="countdown", min_solutions=1000, train_prompts=1, heldout_prompts=1, warmup_prompts=0)
    with pytest.raises(DisaError, match="only 0 distinct prompts found.*Fix: .*lower min_solutions"):
        make_task(config).prompts("train")


@pytest.mark.parametrize("payload", ["{", "[]", "3", '{"numbers": [1]}', "null", ""])
def test_a_damaged_payload_is_named(payload):
    row = Prompt("abc", "countdown", "train", "?", payload, None)
    with pytest.raises(DisaError, match="prompt abc, field payload: expected a JSON object with numbers, target.*Fix"):
        read_payload(row, "numbers", "target")


def test_the_fingerprints_name_version_and_reward_range():
    task = task_of("countdown")
    assert task.fingerprint == f"countdown:{task.version}"
    assert task.reward_fingerprint == f"countdown:{task.version}[0.0, 1.0]"


@pytest.mark.parametrize("name", ["countdown", "graph_coloring", "n_queens", "shortest_path"])
def test_a_task_finds_the_prompts_that_it_asks_for_by_default(name):
    task = make_task(TypeAdapter(TaskSection).validate_python({"name": name}))
    for split in ("train", "heldout", "warmup"):
        assert len(task.prompts(split)) == task.config.size(split)
