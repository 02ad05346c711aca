"""N queens: put back the queens removed from a board on which no two attack each other."""

from __future__ import annotations

import functools
import random
from typing import Any

from disa.runs.records import Prompt
from disa.tasks.config import NQueensConfig
from disa.tasks.task import Task, read_payload

_EMPTY = "?"


class NQueens(Task):
    """A board is one column digit per row, and a complete valid board is its own mode."""

    name = "n_queens"
    version = 1
    characters = "123456789" + _EMPTY
    config: NQueensConfig

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        """A random valid board without some of its queens, where enough boards complete it."""
        board = list(rng.choice(_boards(self.config.queens)))
        removed = rng.randint(self.config.min_removed, self.config.max_removed)
        for row in rng.sample(range(len(board)), removed):
            board[row] = _EMPTY
        payload = {"board": "".join(board)}
        return payload if len(_completions(payload["board"])) >= self.config.min_solutions else None

    def identity(self, payload: dict[str, Any]) -> str:
        """The smallest of the eight boards that rotations and reflections make of it."""
        board = payload["board"]
        turned = [board]
        for _ in range(3):
            turned.append(_quarter_turn(turned[-1]))
        return min(turned + [image[::-1] for image in turned])

    def text(self, payload: dict[str, Any]) -> str:
        """The template, filled in."""
        return self.config.prompt_template.format(board=payload["board"])

    def solutions(self, prompt: Prompt) -> list[str]:
        """Every valid board that has the given queens."""
        (board,) = read_payload(prompt, "board")
        return list(_completions(board))

    def mode(self, prompt: Prompt, completion: str) -> str | None:
        """The board, where the completion is a valid one that has the given queens."""
        (board,) = read_payload(prompt, "board")
        text = completion.strip()
        return text if text in _completions(board) else None

    def demonstration(self, prompt: Prompt, rng: random.Random, *, noisy: bool) -> str:
        """A random completion of the board; a noisy one has random columns in its empty rows."""
        (board,) = read_payload(prompt, "board")
        if noisy:
            return "".join(rng.choice("123456789"[: len(board)]) if mark == _EMPTY else mark for mark in board)
        return rng.choice(self.solutions(prompt))


@functools.cache
def _boards(size: int) -> tuple[str, ...]:
    """Every valid board, sorted: no two queens share a row, a column or a diagonal."""
    partial: list[tuple[int, ...]] = [()]
    for row in range(size):
        partial = [
            (*board, column)
            for board in partial
            for column in range(size)
            if all(column != other and abs(column - other) != row - above for above, other in enumerate(board))
        ]
    return tuple("".join(str(column + 1) for column in board) for board in partial)


@functools.lru_cache(maxsize=65536)
def _completions(board: str) -> tuple[str, ...]:
    return tuple(
        full
        for full in _boards(len(board))
        if all(mark in (_EMPTY, queen) for mark, queen in zip(board, full, strict=True))
    )


def _quarter_turn(board: str) -> str:
    """The board turned by 90 degrees: row r, column c goes to row c, column n - 1 - r.

    A partial board has at most one queen per column too, so it stays one mark per row.
    """
    turned = [_EMPTY] * len(board)
    for row, mark in enumerate(board):
        if mark != _EMPTY:
            turned[int(mark) - 1] = str(len(board) - row)
    return "".join(turned)
