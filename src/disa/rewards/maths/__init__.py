"""Maths answers: whether a completion's final answer is the gold answer.

``completion -> extract_answer -> exact comparison -> math-verify in worker processes -> Verdict``. Exact rational
arithmetic and structure (tuples, lists, sets, intervals, units, percent) decide first, in this process; only what they
leave open reaches math-verify, in processes that are killed at a deadline. Nothing heavy is imported here.
"""

from disa.rewards.maths.answers import Gold, Verdict
from disa.rewards.maths.compare import exact_verdict
from disa.rewards.maths.extract import HASHES, extract_answer
from disa.rewards.maths.verifier import MathsVerifier

__all__ = ["HASHES", "Gold", "MathsVerifier", "Verdict", "exact_verdict", "extract_answer"]
