"""All completions of a small vocabulary up to a length limit, numbered.

A completion is a string of letters, ended by EOS or cut at the length limit. Letter strings form a
tree with ``vocabulary - 1`` branches; numbered level by level, the string y of k letters is node
``offsets[k] + (y read as a number)``. The same number names two things: below the limit, the prefix y
and the completion "y, then EOS"; at the limit, the completion y that was cut.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

EOS = 0
"""Token that ends a completion; letters are the tokens 1, 2, ..."""


@dataclasses.dataclass(frozen=True)
class Space:
    """Completions over a vocabulary (EOS included, at least 2 tokens) with a length limit (at least 1 token)."""

    vocabulary: int = 6
    length_limit: int = 8

    @cached_property
    def letters(self) -> int:
        """Tokens besides EOS."""
        return self.vocabulary - 1

    @cached_property
    def offsets(self) -> NDArray[np.intp]:
        """Number of the first string of each length 0 ... length_limit, and the end, shape (length_limit + 2,)."""
        return np.concatenate(([0], np.cumsum(self.letters ** np.arange(self.length_limit + 1)))).astype(np.intp)

    @cached_property
    def prefixes(self) -> int:
        """Strings below the limit: those after which a token is drawn."""
        return int(self.offsets[-2])

    @cached_property
    def completions(self) -> int:
        """Completions: one per prefix (EOS follows it) and one per string cut at the limit."""
        return int(self.offsets[-1])

    @cached_property
    def letter_counts(self) -> NDArray[np.intp]:
        """Letters of each completion, shape (completions,)."""
        return np.repeat(np.arange(self.length_limit + 1), np.diff(self.offsets))

    @cached_property
    def lengths(self) -> NDArray[np.intp]:
        """Tokens of each completion, its EOS included, shape (completions,)."""
        return np.minimum(self.letter_counts + 1, self.length_limit)

    @cached_property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each completion was cut at the limit, shape (completions,)."""
        return self.letter_counts == self.length_limit

    @cached_property
    def tokens(self) -> NDArray[np.intp]:
        """Letters of each completion, with EOS in every place behind them, shape (completions, length_limit)."""
        tokens = np.full((self.completions, self.length_limit), EOS, dtype=np.intp)
        for k in range(1, self.length_limit + 1):
            rows = slice(self.offsets[k], self.offsets[k + 1])
            number = np.arange(self.letters**k)
            for place in range(k):
                tokens[rows, place] = 1 + number // self.letters ** (k - 1 - place) % self.letters
        return tokens

    def completion_ids(self, completion: int) -> list[int]:
        """Token ids of one completion, EOS included unless it was cut."""
        return self.tokens[completion, : self.lengths[completion]].tolist()

    def number(self, completion_ids: list[int]) -> int:
        """Inverse of :meth:`completion_ids`.

        Raises ValueError where the ids are no completion: neither ended nor at the limit, or going on behind EOS.
        """
        ended = completion_ids[-1:] == [EOS]
        letters = completion_ids[:-1] if ended else completion_ids
        complete = ended or len(letters) == self.length_limit
        if not complete or len(completion_ids) > self.length_limit or not all(0 < t <= self.letters for t in letters):
            raise ValueError(f"{completion_ids} is no completion of {self}")
        value = 0
        for token in letters:
            value = value * self.letters + token - 1
        return int(self.offsets[len(letters)]) + value
