"""N queens: solutions by trying every board, splits that symmetry cannot cross."""

import itertools
import json
import random

import pytest

from disa.tasks import SPLITS, make_task
from disa.tasks.config import NQueensConfig

SMALL = {"name": "n_queens", "train_prompts": 40, "heldout_prompts": 15, "warmup_prompts": 30}


@pytest.fixture(scope="module")
def task():
    return make_task(NQueensConfig(**SMALL))


def asked(task, board):
    payload = {"board": board}
    return task._prompt("train", task.text(payload), payload)


def attacks_nobody(board):
    """Queens as points: no two in one row, column or diagonal."""
    points = [(row, int(mark)) for row, mark in enumerate(board)]
    return all(
        a[0] != b[0] and a[1] != b[1] and abs(a[0] - b[0]) != abs(a[1] - b[1])
        for a, b in itertools.combinations(points, 2)
    )


def by_trying_everything(board):
    columns = "123456789"[: len(board)]
    choices = [columns if mark == "?" else mark for mark in board]
    return sorted("".join(full) for full in itertools.product(*choices) if attacks_nobody(full))


@pytest.mark.parametrize("board", ["????", "?????", "??????", "1???", "2??1?", "????1?", "5?????", "6?????"])
def test_solutions_are_those_that_trying_every_board_finds(board, task):
    assert task.solutions(asked(task, board)) == by_trying_everything(board)


@pytest.mark.parametrize(("queens", "count"), [(4, 2), (5, 10), (6, 4), (7, 40), (8, 92), (9, 352)])
def test_an_empty_board_has_the_known_number_of_solutions(queens, count, task):
    """OEIS A000170."""
    assert len(task.solutions(asked(task, "?" * queens))) == count


def test_solutions_of_drawn_prompts_are_those_of_every_board(task):
    for prompt in task.prompts("train")[:8]:
        board = json.loads(prompt.payload)["board"]
        assert 5 <= board.count("?") <= 7
        complete = [b for b in map("".join, itertools.permutations("12345678")) if attacks_nobody(b)]
        fits = [b for b in complete if all(m in ("?", q) for m, q in zip(board, b, strict=True))]
        assert task.solutions(prompt) == fits
        assert prompt.n_solutions == len(fits)


def test_a_mode_is_a_valid_board_with_the_given_queens_and_nothing_else(task):
    prompt = asked(task, "2???")
    assert task.mode(prompt, "2413") == "2413" == task.mode(prompt, " 2413\n")
    for wrong in ("3142", "2412", "24131", "241", "2 4 1 3", "2314", "", "abcd", "????", "2???"):
        assert task.mode(prompt, wrong) is None
        assert task.reward(prompt, wrong) == 0.0


def images(board):
    """All eight images under rotation and reflection, by coordinates."""
    n = len(board)
    points = [(row, int(mark) - 1) for row, mark in enumerate(board) if mark != "?"]
    maps = [
        lambda r, c: (r, c),
        lambda r, c: (c, n - 1 - r),
        lambda r, c: (n - 1 - r, n - 1 - c),
        lambda r, c: (n - 1 - c, r),
    ]
    for turn in maps:
        for mirror in (False, True):
            rows = ["?"] * n
            for r, c in (turn(*point) for point in points):
                rows[r] = str((n - 1 - c if mirror else c) + 1)
            yield "".join(rows)


@pytest.mark.parametrize("board", ["5?2???7?", "???1????", "24683175"])
def test_all_eight_images_of_a_board_are_one_problem(board, task):
    found = set(images(board))
    assert len(found) > 1
    assert {task.identity({"board": image}) for image in found} == {min(found)}


def test_no_problem_stands_in_two_splits_in_any_orientation(task):
    boards = {s: {min(images(json.loads(p.payload)["board"])) for p in task.prompts(s)} for s in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not boards[a] & boards[b]


def test_demonstrations_solve_the_prompt_and_noisy_ones_mostly_do_not(task):
    rng = random.Random(0)
    solved = 0
    for prompt in task.prompts("train"):
        assert task.reward(prompt, task.demonstration(prompt, rng, noisy=False)) == 1.0
        board = json.loads(prompt.payload)["board"]
        noisy = task.demonstration(prompt, rng, noisy=True)
        assert len(noisy) == 8
        assert all(mark in ("?", queen) for mark, queen in zip(board, noisy, strict=True))
        solved += task.reward(prompt, noisy)
    # At most 18 of 8^5 or more ways to fill five rows or more.
    assert solved <= 1


def test_all_solutions_are_demonstrated(task):
    prompt = asked(task, "?????")
    shown = {task.demonstration(prompt, random.Random(seed), noisy=False) for seed in range(200)}
    assert shown == set(task.solutions(prompt))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="min_removed 6 <= max_removed 5"):
        NQueensConfig(name="n_queens", min_removed=6, max_removed=5)
    with pytest.raises(ValueError, match="max_removed 8 <= queens 6"):
        NQueensConfig(name="n_queens", queens=6, max_removed=8)
    with pytest.raises(ValueError, match="prompt_template has no {board}"):
        NQueensConfig(name="n_queens", prompt_template="fill in")
