"""Secondary measures of diversity: how much the wording of a problem's solutions overlaps.

Cheap, and blind to ideas: a reworded solution counts as new, two methods in the same words as one. They are
reported beside strategies, never instead of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_TOKEN = re.compile(r"\w+|[^\w\s]")
_ORDER = 4
"""Longest n-gram, as BLEU is usually computed."""


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU-4 of every text against all others as references (Zhu et al., arXiv 1802.01886): 1 where all are equal.

    ``BP * exp(mean_n log p_n)`` with n-gram precisions p_n clipped by the references (Papineni et al. 2002), for
    n > 1 smoothed to ``(matches + 1) / (total + 1)`` (Lin and Och 2004), so that short texts do not give 0.
    None for fewer than two texts, or where one has no token.
    """
    tokens = [_TOKEN.findall(text) for text in texts]
    if len(tokens) < 2 or not all(tokens):
        return None
    counts = [[_ngrams(t, n) for n in range(1, _ORDER + 1)] for t in tokens]
    scores = []
    for i, mine in enumerate(counts):
        others = [j for j in range(len(tokens)) if j != i]
        logs = []
        for n, grams in enumerate(mine):
            matches = sum(min(c, max(counts[j][n][gram] for j in others)) for gram, c in grams.items())
            smooth = int(n > 0)
            precision = (matches + smooth) / (sum(grams.values()) + smooth)
            logs.append(math.log(precision) if precision else -math.inf)
        closest = min((len(tokens[j]) for j in others), key=lambda length: (abs(length - len(tokens[i])), length))
        penalty = min(0.0, 1 - closest / len(tokens[i]))
        scores.append(math.exp(penalty + sum(logs) / _ORDER))
    return sum(scores) / len(scores)


def vendi_score(texts: Sequence[str]) -> float | None:
    """Effective number of different texts: ``exp(-sum_i l_i log l_i)``, l the eigenvalues of K / n.

    Friedman and Dieng (arXiv 2210.02410), with K the cosine similarity of the counts of n-grams up to 4: 1 where all
    texts are equal, n where no two share a token. None without texts, or where one has no token.
    """
    tokens = [_TOKEN.findall(text) for text in texts]
    if not tokens or not all(tokens):
        return None
    counts = [sum((_ngrams(t, n) for n in range(1, _ORDER + 1)), Counter()) for t in tokens]
    index = {gram: i for i, gram in enumerate(dict.fromkeys(g for c in counts for g in c))}
    vectors = np.zeros((len(counts), len(index)))
    for row, grams in zip(vectors, counts, strict=True):
        row[[index[g] for g in grams]] = list(grams.values())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(vectors @ vectors.T / len(counts))
    positive = eigenvalues[eigenvalues > 0]  # rounding leaves zeros a little below
    return float(np.exp(-np.sum(positive * np.log(positive))))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
