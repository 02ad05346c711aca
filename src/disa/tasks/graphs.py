"""What the puzzles about small graphs share: edges as pairs of vertices ``0 .. n-1``, vertices written as letters."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Sequence

VERTICES = "abcdefghijkl"

Edges = tuple[tuple[int, int], ...]


def random_edges(vertices: int, probability: float, rng: random.Random) -> list[list[int]]:
    """Each possible edge with the same chance."""
    return [list(edge) for edge in itertools.combinations(range(vertices), 2) if rng.random() < probability]


def hashable_edges(edges: Sequence[Sequence[int]]) -> Edges:
    """Edges as a payload holds them, in the form that a cache takes."""
    return tuple((a, b) for a, b in edges)


def edges_text(edges: Sequence[Sequence[int]]) -> str:
    """Edges as a prompt shows them, such as ``ab bd``."""
    return " ".join(VERTICES[a] + VERTICES[b] for a, b in edges)


def graph_neighbours(vertices: int, edges: Sequence[Sequence[int]]) -> list[list[int]]:
    """Vertices that each vertex shares an edge with."""
    return [[a if b == v else b for a, b in edges if v in (a, b)] for v in range(vertices)]


def isomorphism_invariant(vertices: int, edges: Sequence[Sequence[int]], marked: Collection[int] = ()) -> list:
    """Colour refinement (Weisfeiler and Leman 1968): equal for isomorphic graphs with the same vertices marked.

    The rare pair of different graphs it cannot tell apart only ends in the same split.
    """
    joined = graph_neighbours(vertices, edges)
    rank, invariant = [int(v in marked) for v in range(vertices)], []
    for _ in range(vertices):
        seen = [(rank[v], sorted(rank[other] for other in joined[v])) for v in range(vertices)]
        kinds = sorted(seen)
        invariant.append(kinds)
        rank = [kinds.index(kind) for kind in seen]
    return invariant
