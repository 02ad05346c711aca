"""Many completions against their gold answers, in order, whatever the model wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from disa.errors import DisaError
from disa.rewards.maths.answers import Gold, Verdict, as_gold
from disa.rewards.maths.compare import verdict_on
from disa.rewards.maths.extract import compiled_pattern, extract_answer


class MathsVerifier:
    r"""Judge of maths completions.

    Parameters
    ----------
    pattern : str, optional
        Regular expression with one group; its last match is the answer (:data:`disa.rewards.maths.HASHES` for
        GSM8K's own solutions). None: the last ``\boxed{...}``.
    max_characters : int
        A longer answer is wrong and is not read: cut short it would be another answer. The longest gold answer of the
        benchmarks in ``docs/verifiers-maths.md`` has 204 characters.
    percent_optional : bool
        Whether a percent sign may be left out or added (``10`` for ``10\%``), for every gold answer. Off by
        default: 10% is 1/10. A gold answer with ``unit="%"`` allows both in any case.

    Attributes
    ----------
    counts : Counter
        What happened so far: one of ``correct``, ``wrong``, ``undecided`` per completion; of the wrong ones also
        ``no_answer`` and ``too_long``, of the undecided ones ``error`` where the comparison itself failed.
    """

    def __init__(
        self, *, pattern: str | None = None, max_characters: int = 1000, percent_optional: bool = False
    ) -> None:
        if max_characters <= 0:
            raise DisaError(
                f"max_characters must be positive, found {max_characters}",
                where="maths verifier",
                fix="leave it at its default",
            )
        if pattern is not None:
            compiled_pattern(pattern)
        self.pattern, self.max_characters, self.percent_optional = pattern, max_characters, percent_optional
        self.counts: Counter[str] = Counter()

    def check(self, golds: Sequence[str | Gold], completions: Sequence[str]) -> list[Verdict]:
        """Verdict on each completion, in order. May be called from any thread.

        Raises DisaError where the two differ in length, or a gold answer is empty.
        """
        if len(golds) != len(completions):
            raise DisaError(
                f"{len(golds)} gold answers for {len(completions)} completions",
                where="maths verifier",
                fix="give one gold answer per completion",
            )
        verdicts = [self._one(gold, text) for gold, text in zip(map(as_gold, golds), completions, strict=True)]
        self.counts.update(verdicts)
        return verdicts

    def _one(self, gold: Gold, completion: str) -> Verdict:
        answer = extract_answer(completion, self.pattern)
        if answer is None or len(answer) > self.max_characters:
            self.counts["no_answer" if answer is None else "too_long"] += 1
            return Verdict.WRONG
        try:
            return verdict_on(gold, answer, percent_optional=self.percent_optional)
        except Exception:  # a defect of the comparison costs this one verdict, and shows in the counts
            self.counts["error"] += 1
            return Verdict.UNDECIDED
