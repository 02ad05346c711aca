"""Many completions against their gold answers, in order, whatever the model wrote."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from disa.errors import DisaError
from disa.rewards.maths.answers import Gold, Verdict, as_gold
from disa.rewards.maths.compare import exact_verdict
from disa.rewards.maths.extract import compiled, extract_answer
from disa.rewards.maths.pool import WorkerPool


class MathsVerifier:
    r"""Judge of maths completions; a context manager, to be closed when done.

    Parameters
    ----------
    workers : int
        Processes for symbolic comparison, started when the first answer needs one.
    deadline_s : float
        Wall-clock seconds one symbolic comparison may take before its process is killed and the verdict is undecided.
    pattern : str, optional
        Regular expression with one group; its last match is the answer (:data:`disa.rewards.maths.HASHES` for
        GSM8K's own solutions). None: the last ``\boxed{...}``.
    max_characters : int
        A longer answer is wrong and is not read: cut short it would be another answer. The longest gold answer of the
        benchmarks in ``docs/verifiers-maths.md`` has 204 characters.
    percent_optional : bool
        Whether a percent sign may be left out or added (``10`` for ``10\%``), for every gold answer. Off by
        default: 10% is 1/10. A gold answer with ``unit="%"`` allows both in any case.
    memory_mb : int
        Address space of one worker process.

    Attributes
    ----------
    counts : Counter
        What happened so far: one of ``correct``, ``wrong``, ``undecided`` a completion, and one of ``no_answer``,
        ``too_long``, ``exact``, ``symbolic``, or for the undecided ones ``deadline``, ``crash``, ``error`` (raised in
        the comparison), ``gold`` (gold answer that cannot be read).
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        deadline_s: float = 5.0,
        pattern: str | None = None,
        max_characters: int = 1000,
        percent_optional: bool = False,
        memory_mb: int = 1024,
    ) -> None:
        for name, value in (("workers", workers), ("deadline_s", deadline_s), ("max_characters", max_characters)):
            if value <= 0:
                raise DisaError(
                    f"{name} must be positive, found {value}", where="maths verifier", fix="leave it at its default"
                )
        if pattern is not None:
            compiled(pattern)
        self.pattern, self.max_characters, self.percent_optional = pattern, max_characters, percent_optional
        self.counts: Counter[str] = Counter()
        self._pool = WorkerPool(workers, deadline_s, memory_mb)
        self._turn = threading.Lock()

    def check(self, golds: Sequence[str | Gold], completions: Sequence[str]) -> list[Verdict]:
        """Verdict on each completion, in order. May be called from any thread; calls take turns.

        Raises
        ------
        DisaError
            Where the two differ in length, a gold answer is empty, or a worker cannot start.
        """
        if len(golds) != len(completions):
            raise DisaError(
                f"{len(golds)} gold answers for {len(completions)} completions",
                where="maths verifier",
                fix="give one gold answer a completion",
            )
        verdicts: list[Verdict] = []
        open_questions: dict[tuple[Gold, str], list[int]] = {}
        with self._turn:
            for index, (gold, completion) in enumerate(zip(map(as_gold, golds), completions, strict=True)):
                answer = extract_answer(completion, self.pattern)
                verdict, how = self._at_once(gold, answer)
                if verdict is None and answer is not None:
                    # equal answers to one problem are one question
                    open_questions.setdefault((gold, answer), []).append(index)
                    verdicts.append(Verdict.UNDECIDED)
                else:
                    self._count(verdict, how)
                    verdicts.append(verdict)
            for indices, (verdict, how) in zip(
                open_questions.values(), self._symbolic(list(open_questions)), strict=True
            ):
                for index in indices:
                    self._count(verdict, how)
                    verdicts[index] = verdict
        return verdicts

    def close(self) -> None:
        """End the worker processes; a later check starts new ones."""
        self._pool.close()

    def __enter__(self) -> MathsVerifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _at_once(self, gold: Gold, answer: str | None) -> tuple[Verdict | None, str]:
        if answer is None:
            return Verdict.WRONG, "no_answer"
        if len(answer) > self.max_characters:
            return Verdict.WRONG, "too_long"
        try:
            return exact_verdict(gold, answer, percent_optional=self.percent_optional), "exact"
        except RecursionError:  # the caller's own stack may leave less room than nesting is allowed to take
            return None, "exact"

    def _symbolic(self, questions: list[tuple[Gold, str]]) -> list[tuple[Verdict, str]]:
        replies = self._pool.ask(
            [
                {"gold": dataclasses.asdict(gold), "answer": answer, "percent_optional": self.percent_optional}
                for gold, answer in questions
            ]
        )
        return [
            (Verdict.UNDECIDED, reply["reason"])
            if reply["same"] is None
            else (Verdict.CORRECT if reply["same"] else Verdict.WRONG, "symbolic")
            for reply in replies
        ]

    def _count(self, verdict: Verdict, how: str) -> None:
        self.counts[verdict] += 1
        self.counts[how] += 1
