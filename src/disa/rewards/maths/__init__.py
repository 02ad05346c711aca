"""Maths answers: whether a completion's final answer is the gold answer.

``completion -> extract_answer -> structure -> values -> Verdict``. An answer is taken apart into tuples, lists, sets,
intervals, units; every element is parsed by a grammar of our own and valued, exactly where it is rational and to 200
digits else. Every step is bounded, so nothing has to be stopped from outside, and no text is evaluated.
"""

from disa.rewards.maths.answers import Gold, Verdict
from disa.rewards.maths.compare import verdict_on
from disa.rewards.maths.extract import HASHES, extract_answer
from disa.rewards.maths.steps import arithmetic_steps
from disa.rewards.maths.verifier import MathsVerifier

__all__ = ["HASHES", "Gold", "MathsVerifier", "Verdict", "arithmetic_steps", "extract_answer", "verdict_on"]
