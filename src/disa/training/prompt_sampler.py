"""Which prompts a batch is drawn for: in proportion to the expected size of their gradient.

At the reference the residual of a completion is ``log Z - beta r``, so a prompt whose completions all earn the same
teaches nothing. What it teaches is the standard deviation of its residuals: ``beta sqrt(q (1 - q))`` before the first
step, with the q of the anchor's interval that is nearest to 1/2, and the group's own afterwards. Any positive
distribution over prompts has the same optimum: the target solves every prompt by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from disa.runs.records import PartitionEstimate

_FLOOR = 0.1
"""Of the mean signal: the least that a prompt is drawn by, so that none is given up."""
_NEW = 0.5
"""Weight of a new measurement against what was known."""


def expected_signal(row: PartitionEstimate, beta: float, reward_range: tuple[float, float]) -> float:
    """Standard deviation of a prompt's residuals at the reference, nats, as far as its interval allows."""
    low, width = beta * reward_range[0], beta * (reward_range[1] - reward_range[0])
    # q = expm1(log Z - beta r_min) / expm1(width), without overflow.
    least, most = (
        (np.exp(z - low - width) - np.exp(-width)) / -np.expm1(-width) for z in (row.interval_low, row.interval_high)
    )
    q = float(np.clip(0.5, np.clip(least, 0, 1), np.clip(most, 0, 1)))
    return width * (q * (1 - q)) ** 0.5


class SignalSampler(Sampler[int]):
    """Rows of a data set, batch by batch, each row drawn at most once per batch, in proportion to its ``signal``.

    The data loader asks for batches ahead of their turn. So the c-th batch is drawn once the (c - 2)-th was measured,
    from a generator of its own: a resumed run draws what an unbroken one does. A batch has ``batch_size`` distinct
    rows; ``mini_repeat_count`` and ``repeat_count`` are TRL's.
    """

    def __init__(
        self, signal: Sequence[float], *, batch_size: int, mini_repeat_count: int, repeat_count: int, seed: int
    ) -> None:
        self.signal: NDArray[np.float64] = np.array(signal, dtype=np.float64)
        self.epoch = 0
        self._size, self._each, self._times, self._seed = batch_size, mini_repeat_count, repeat_count, seed
        self._measured, self._drawn = 0, {number: self._draw(number) for number in (0, 1)}

    def __len__(self) -> int:
        return self._batches * self._size * self._each * self._times

    @property
    def _batches(self) -> int:
        return len(self.signal) // self._size

    def _draw(self, number: int) -> list[int]:
        rng = np.random.default_rng([self._seed, number])
        chance = np.maximum(self.signal, _FLOOR * max(self.signal.mean(), np.finfo(float).tiny))
        # The largest of log chance plus Gumbel noise are draws without replacement in proportion to the chance.
        return np.argsort(-(np.log(chance) + rng.gumbel(size=len(chance))))[: self._size].tolist()

    def __iter__(self) -> Iterator[int]:
        for number in range(self.epoch * self._batches, (self.epoch + 1) * self._batches):
            # What a resumed run skips is not known any more, and not looked at.
            rows = self._drawn.get(number) or self._draw(number)
            for _ in range(self._times):
                for row in rows:
                    yield from [row] * self._each

    def measured(self, rows: Sequence[int], signal: Sequence[float]) -> None:
        """Take in what the next batch in turn has shown of its rows, and draw the one after the next."""
        for row, found in zip(rows, signal, strict=True):
            self.signal[row] = (1 - _NEW) * self.signal[row] + _NEW * found
        self._measured += 1
        self._drawn = {n: rows for n, rows in self._drawn.items() if n >= self._measured}
        self._drawn[self._measured + 1] = self._draw(self._measured + 1)

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {"signal": self.signal.tolist(), "measured": self._measured, "drawn": self._drawn}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        self.signal, self._measured, self._drawn = np.array(state["signal"]), state["measured"], state["drawn"]
