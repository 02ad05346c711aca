"""Verifiers by name: many completions with what each is judged by, in order; None where one stays undecided."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from disa.errors import DisaError
from disa.rewards.custom import CustomReward
from disa.runs.provenance import digest

if TYPE_CHECKING:
    from disa.rewards.code import CodeVerifier, Program
    from disa.rewards.maths import MathsVerifier


class AnswerJudge(Protocol):
    """What judges the completions of one kind of problem."""

    fingerprint: str
    """Changes whenever another verdict is possible."""
    reward_range: tuple[float, float]

    @property
    def mode(self) -> Callable[[dict[str, Any], str, str], str] | None:
        """From gold, prompt and correct completion to the kind of solution, None where the verifier names no kinds."""

    def __call__(
        self, golds: Sequence[dict[str, Any]], prompts: Sequence[str], completions: Sequence[str]
    ) -> list[float | None]:
        """Rewards in order."""


def make_judge(
    verifier: str,
    pattern: str | None,
    *,
    arithmetic: bool,
    workers: int,
    reward_range: tuple[float, float] | None,
    messages: bool,
) -> AnswerJudge:
    """The verifier of that name; nothing heavy starts before its first call. ``arithmetic`` of maths: word problems."""
    if verifier == "exact":
        return ExactJudge(pattern)
    if verifier == "maths":
        return MathsJudge(pattern, arithmetic)
    if verifier == "code":
        return CodeJudge(workers)
    return CustomJudge(CustomReward(verifier, reward_range, conversational=messages))


class ExactJudge:
    """1 where the answer is one of the gold answers, runs of white space counting as one space."""

    reward_range, mode = (0.0, 1.0), None

    def __init__(self, pattern: str | None) -> None:
        self._pattern = pattern
        self.fingerprint = f"exact:1:{digest(pattern)}"

    def __call__(
        self, golds: Sequence[dict[str, Any]], prompts: Sequence[str], completions: Sequence[str]
    ) -> list[float | None]:
        """Rewards in order."""
        return [self._one(gold["answers"], text) for gold, text in zip(golds, completions, strict=True)]

    def _one(self, answers: list[str], completion: str) -> float:
        from disa.rewards.maths import extract_answer

        answer = completion if self._pattern is None else extract_answer(completion, self._pattern)
        return float(answer is not None and " ".join(answer.split()) in {" ".join(a.split()) for a in answers})


class MathsJudge:
    """1 where the final answer is the gold answer, by :class:`disa.rewards.maths.MathsVerifier`.

    Of arithmetic in words (GSM8K) the kind of a solution is the steps of its equations.
    """

    reward_range = (0.0, 1.0)

    def __init__(self, pattern: str | None, arithmetic: bool) -> None:
        self._pattern = pattern
        self._verifier: MathsVerifier | None = None
        self.fingerprint = f"maths:3:{digest(pattern)}" + "+arithmetic" * arithmetic
        self.mode = self._steps if arithmetic else None

    @staticmethod
    def _steps(gold: dict[str, Any], prompt: str, completion: str) -> str:
        from disa.rewards.maths import arithmetic_steps

        return arithmetic_steps(completion)

    def __call__(
        self, golds: Sequence[dict[str, Any]], prompts: Sequence[str], completions: Sequence[str]
    ) -> list[float | None]:
        """Rewards in order."""
        from disa.rewards.maths import Gold, MathsVerifier

        if self._verifier is None:
            self._verifier = MathsVerifier(pattern=self._pattern)
        return [verdict.reward for verdict in self._verifier.check([Gold.from_row(g) for g in golds], completions)]


class CodeJudge:
    """1 where the program in the completion passes every test, by :class:`disa.rewards.code.CodeVerifier`.

    The kind of a solution is its normalised syntax tree.
    """

    reward_range = (0.0, 1.0)
    fingerprint = "code:5"

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._verifier: CodeVerifier | None = None

    def __call__(
        self, golds: Sequence[dict[str, Any]], prompts: Sequence[str], completions: Sequence[str]
    ) -> list[float | None]:
        """Rewards in order."""
        from disa.rewards.code import CodeVerifier, extract_code

        if self._verifier is None:
            self._verifier = CodeVerifier(workers=self._workers)
        programs = [
            program_of(gold, extract_code(text, called_names(gold)))
            for gold, text in zip(golds, completions, strict=True)
        ]
        return [None if v.status == "undecided" else float(v.passed) for v in self._verifier.check(programs)]

    @staticmethod
    def mode(gold: dict[str, Any], prompt: str, completion: str) -> str:
        """The program's normal form."""
        from disa.rewards.code import extract_code, normal_form

        names = called_names(gold)
        return normal_form(extract_code(completion, names), names)


class CustomJudge:
    """A user's reward function, called with the rows' columns by name."""

    def __init__(self, reward: CustomReward) -> None:
        self._reward = reward
        named = reward.mode
        self.mode = None if named is None else lambda gold, prompt, completion: named(prompt, completion)
        self.reward_range = reward.reward_range
        self.fingerprint = f"{reward.fingerprint}{list(reward.reward_range)}"

    def __call__(
        self, golds: Sequence[dict[str, Any]], prompts: Sequence[str], completions: Sequence[str]
    ) -> list[float | None]:
        """Rewards in order."""
        names = dict.fromkeys(name for gold in golds for name in gold["columns"])
        # TRL leaves these two out of the columns: they are arguments of their own.
        columns = {n: [gold["columns"].get(n) for gold in golds] for n in names if n not in ("prompts", "completions")}
        return self._reward(prompts, completions, columns)


def called_names(gold: dict[str, Any]) -> tuple[str, ...]:
    """What the tests of a code problem's payload call; nothing where they run a script."""
    from disa.rewards.code import FunctionTests

    if gold["kind"].startswith("humaneval"):
        return (gold["entry_point"],)
    if gold["kind"] == "assertions":
        tests = program_of(gold, "").tests
        assert isinstance(tests, FunctionTests)
        return tests.names
    return (gold["function"],) if gold.get("function") else ()


def program_of(gold: dict[str, Any], code: str) -> Program:
    """A program with the tests that a code problem's payload holds."""
    from disa.rewards import code as build

    kind = gold["kind"]
    if kind == "humaneval":
        return build.from_humaneval(gold, code)
    if kind == "humaneval_plus":
        return build.from_humaneval_plus(gold, code)
    if kind == "assertions":
        return build.from_mbpp(gold, code)
    if kind == "stdio":
        return build.from_stdio(code, [(given, expected) for given, expected in gold["cases"]])
    cases = [*json.loads(gold["public_test_cases"]), *unpack_tests(gold["private_test_cases"])]
    return build.from_live_code_bench(code, cases, gold["function"])


def unpack_tests(packed: str) -> list[dict[str, Any]]:
    """LiveCodeBench's private tests: JSON, or JSON within a pickled text within zlib within base64.

    Unpickling is code execution in general; here it is refused for anything but plain text. Raises DisaError where they
    are none of this.
    """
    try:
        return json.loads(packed)
    except json.JSONDecodeError:
        pass
    try:
        text = _PlainUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
        return json.loads(text)
    except (ValueError, TypeError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise DisaError(
            f"cannot be unpacked ({error})", where="private tests of a LiveCodeBench row", fix="use the published files"
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"the tests name {module}.{name}, and only text is read from them")
