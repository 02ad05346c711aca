"""Reward of model-written programs: run in a bubblewrap sandbox, judged outside of the program's reach.

    check(program) = passed  if and only if  every test of the program holds

A program that is called (HumanEval, MBPP) lives in one sandbox, its tests in a second one; only arguments and
plain-data results travel between them. A program that reads stdin and writes stdout gets its input, and the
output is compared in the calling process. Expected values never enter the program's sandbox: docs/verifiers-code.md.
"""

from disa.rewards.code.benchmarks import (
    from_calls,
    from_humaneval,
    from_humaneval_plus,
    from_live_code_bench,
    from_mbpp,
    from_stdio,
)
from disa.rewards.code.extract import extract_code
from disa.rewards.code.normal_form import normal_form
from disa.rewards.code.program import (
    FunctionTests,
    Limits,
    Program,
    StdioTests,
)
from disa.rewards.code.verdict import CodeVerdict, count_verdicts
from disa.rewards.code.verifier import CodeVerifier

__all__ = [
    "CodeVerdict",
    "CodeVerifier",
    "FunctionTests",
    "Limits",
    "Program",
    "StdioTests",
    "count_verdicts",
    "extract_code",
    "from_calls",
    "from_humaneval",
    "from_humaneval_plus",
    "from_live_code_bench",
    "from_mbpp",
    "from_stdio",
    "normal_form",
]
