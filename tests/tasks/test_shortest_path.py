"""Shortest path: the modes are the paths that trying every sequence of vertices finds."""

import itertools
import json
import random

import pytest

from disa.tasks import SPLITS, make_task
from disa.tasks.config import ShortestPathConfig

SMALL = {"name": "shortest_path", "train_prompts": 30, "heldout_prompts": 12, "warmup_prompts": 20}


@pytest.fixture(scope="module")
def task():
    return make_task(ShortestPathConfig(**SMALL))


def asked(task, edges, ends, vertices=6):
    number = "abcdefghijkl".index
    payload = {
        "vertices": vertices,
        "edges": [[number(a), number(b)] for a, b in edges.split()],
        "start": number(ends[0]),
        "end": number(ends[1]),
    }
    return task._prompt("train", task.text(payload), payload)


def by_trying_everything(payload):
    """Shortest sequences of different vertices whose neighbours are joined."""
    joined = {frozenset(edge) for edge in payload["edges"]}
    others = [v for v in range(payload["vertices"]) if v not in (payload["start"], payload["end"])]
    for between in range(len(others) + 1):
        paths = [
            path
            for middle in itertools.permutations(others, between)
            for path in [(payload["start"], *middle, payload["end"])]
            if all(frozenset(pair) in joined for pair in itertools.pairwise(path))
        ]
        if paths:
            return sorted("".join("abcdefghijkl"[v] for v in path) for path in paths)
    return []


def test_solutions_are_those_that_trying_every_sequence_finds(task):
    for prompt in [*task.prompts("train"), *task.prompts("heldout")]:
        payload = json.loads(prompt.payload)
        assert task.solutions(prompt) == by_trying_everything(payload)
        assert prompt.n_solutions == len(task.solutions(prompt)) >= 2
        assert len(task.solutions(prompt)[0]) >= 4


KNOWN = {
    "a square": ("ab ac bd cd", "ad", ["abd", "acd"]),
    "one edge beats a detour": ("ab bc ac", "ac", ["ac"]),
    "a cube's layer": ("ab ac ad be bf ce cf de df", "ae", ["abe", "ace", "ade"]),
    "not connected": ("ab cd", "ad", []),
    "from the other end": ("ab ac bd cd", "da", ["dba", "dca"]),
}


@pytest.mark.parametrize(("edges", "ends", "paths"), KNOWN.values(), ids=KNOWN.keys())
def test_small_graphs_have_the_paths_seen_by_eye(edges, ends, paths, task):
    assert task.solutions(asked(task, edges, ends)) == paths


def test_only_a_shortest_path_is_rewarded(task):
    prompt = asked(task, "ab bc cd ad de be", "ae")
    assert task.solutions(prompt) == ["abe", "ade"]
    assert task.mode(prompt, " abe ") == "abe"
    wrong = {"longer": "abcde", "no such edge": "ace", "backwards": "eba", "cut short": "ab", "spaced": "a b e"}
    for text in [*wrong.values(), "", "ABE", "abee", "ae"]:
        assert task.mode(prompt, text) is None
        assert task.reward(prompt, text) == 0.0


def test_relabelled_graphs_and_exchanged_ends_are_one_problem(task):
    rng = random.Random(0)
    for prompt in task.prompts("train")[:10]:
        payload = json.loads(prompt.payload)
        name = list(range(payload["vertices"]))
        rng.shuffle(name)
        edges = [sorted((name[a], name[b])) for a, b in payload["edges"]]
        rng.shuffle(edges)
        ends = [name[payload["start"]], name[payload["end"]]]
        for start, end in (ends, ends[::-1]):
            again = payload | {"edges": edges, "start": start, "end": end}
            assert task.identity(again) == task.identity(payload)
    other_end = next(v for v in range(payload["vertices"]) if v not in (payload["start"], payload["end"]))
    assert task.identity(payload | {"edges": payload["edges"][1:]}) != task.identity(payload)
    assert task.identity(payload | {"end": other_end}) != task.identity(payload)


def test_splits_share_no_problem(task):
    seen = {split: {task.identity(json.loads(p.payload)) for p in task.prompts(split)} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not seen[a] & seen[b]


def test_demonstrations_solve_the_prompt_and_noisy_ones_keep_ends_and_length(task):
    rng = random.Random(0)
    rewards = []
    for prompt in task.prompts("train"):
        assert task.reward(prompt, task.demonstration(prompt, rng, noisy=False)) == 1.0
        noisy = task.demonstration(prompt, rng, noisy=True)
        model = task.solutions(prompt)[0]
        assert (noisy[0], noisy[-1], len(noisy)) == (model[0], model[-1], len(model))
        rewards.append(task.reward(prompt, noisy))
    # Two vertices or more in the middle, each one of ten: a few of a hundred sequences are paths.
    assert sum(rewards) < len(rewards) / 2


def test_the_alphabet_covers_prompts_and_demonstrations(task):
    rng = random.Random(1)
    for prompt in task.prompts("warmup"):
        assert set(prompt.prompt) | set(task.demonstration(prompt, rng, noisy=True)) <= set(task.alphabet)
