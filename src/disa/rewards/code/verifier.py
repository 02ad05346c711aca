"""Judge programs in parallel: one verdict each, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from disa.errors import DisaError
from disa.rewards.code.function_run import judge_calls
from disa.rewards.code.program import FunctionTests, Limits, Program
from disa.rewards.code.sandbox import open_sandbox
from disa.rewards.code.script_run import judge_outputs
from disa.rewards.code.verdict import CodeVerdict, readable_line


class CodeVerifier:
    """Runs model-written programs against their tests, in a bubblewrap sandbox each.

    Raises DisaError where bubblewrap is missing or does not work: model-written programs never run without it. Of
    ``workers`` programs judged at the same time each is a thread that waits for its sandbox.
    """

    def __init__(self, workers: int = 2, limits: Limits | None = None) -> None:
        if workers < 1:
            raise DisaError(
                f"workers is {workers}, at least 1 is needed", where="code verifier", fix="set workers to 1"
            )
        self.workers, self.limits = workers, limits or Limits()
        self._sandbox = open_sandbox(self.limits)

    def check(self, programs: Sequence[Program]) -> list[CodeVerdict]:
        """Verdicts in the order of the programs."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="code-verifier")
        try:
            return list(pool.map(self._check, programs))
        finally:
            # After an interrupt: programs under way end within their limits, the others do not begin.
            pool.shutdown(cancel_futures=True)

    def _check(self, program: Program) -> CodeVerdict:
        length = len(program.source.encode("utf-8", "surrogatepass"))
        if length > self.limits.program_kb * 1024:
            return CodeVerdict("failed", f"the program is {length} bytes long, {self.limits.program_kb} KB are allowed")
        try:
            source = {"prelude": program.prelude, "source": program.source}
            if isinstance(program.tests, FunctionTests):
                return judge_calls(self._sandbox, self.limits, source, program.tests)
            return judge_outputs(self._sandbox, self.limits, source, program.tests)
        except OSError as error:  # no process, pipe or memory to be had: says nothing about the program
            return CodeVerdict("undecided", f"the sandbox could not be started: {error}")
        except Exception as error:  # whatever a program makes of its output, the others get their verdicts
            return CodeVerdict("undecided", readable_line(f"the verifier failed: {type(error).__name__}: {error}"))
