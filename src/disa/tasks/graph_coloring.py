"""Graph colouring: name a colour for every vertex so that no edge joins two of the same."""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

from disa.runs.records import Prompt
from disa.tasks.config import GraphColoringConfig
from disa.tasks.task import Task, read_payload

_VERTICES = "abcdefgh"


class GraphColoring(Task):
    """Modes are proper colourings modulo renaming the colours; all of them can be enumerated."""

    name = "graph_coloring"
    version = 2
    config: GraphColoringConfig

    @property
    def alphabet(self) -> str:
        """Vertex letters, digits, space, and the template's own characters."""
        return _VERTICES + "0123456789 " + self.config.prompt_template.format(edges="", colors="")

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        """A random graph in which every vertex has an edge and enough colourings exist."""
        n, colors = self.config.vertices, self.config.colors
        edges = [list(e) for e in itertools.combinations(range(n), 2) if rng.random() < self.config.edge_probability]
        payload = {"vertices": n, "colors": colors, "edges": edges}
        covered = {vertex for edge in edges for vertex in edge}
        if len(covered) < n or len(_colorings(n, colors, _freeze(edges))) < self.config.min_solutions:
            return None
        return payload

    def identity(self, payload: dict[str, Any]) -> str:
        """The same for isomorphic graphs, and the number of colours."""
        return f"{_isomorphism_invariant(payload['vertices'], _freeze(payload['edges']))}/{payload['colors']}"

    def text(self, payload: dict[str, Any]) -> str:
        """The template, filled in."""
        edges = " ".join(_VERTICES[a] + _VERTICES[b] for a, b in payload["edges"])
        return self.config.prompt_template.format(edges=edges, colors=payload["colors"])

    def solutions(self, prompt: Prompt) -> list[str]:
        """Proper colourings, colours numbered in order of first use."""
        vertices, colors, edges = read_payload(prompt, "vertices", "colors", "edges")
        return list(_colorings(vertices, colors, _freeze(edges)))

    def mode(self, prompt: Prompt, completion: str) -> str | None:
        """The colouring in order of first use, where the completion is one colour digit a vertex and proper."""
        vertices, colors, edges = read_payload(prompt, "vertices", "colors", "edges")
        text = completion.strip()
        allowed = {str(color) for color in range(1, colors + 1)}
        if len(text) != vertices or not set(text) <= allowed or any(text[a] == text[b] for a, b in edges):
            return None
        order = {color: str(i + 1) for i, color in enumerate(dict.fromkeys(text))}
        return "".join(order[color] for color in text)

    def demonstration(self, prompt: Prompt, rng: random.Random, *, noisy: bool) -> str:
        """A random proper colouring in canonical form; a noisy one is any colouring.

        Canonical, because colours renamed at random hide from a small model what is to be learnt.
        """
        if noisy:
            vertices, colors = read_payload(prompt, "vertices", "colors")
            return "".join(str(rng.randint(1, colors)) for _ in range(vertices))
        return rng.choice(self.solutions(prompt))


def _freeze(edges: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((a, b) for a, b in edges)


@functools.lru_cache(maxsize=65536)
def _colorings(vertices: int, colors: int, edges: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """Proper colourings as restricted growth strings: each colour's first use comes in numerical order."""
    earlier = [[a if b == v else b for a, b in edges if max(a, b) == v] for v in range(vertices)]
    partial = [""]
    for vertex in range(vertices):
        partial = [
            text + str(color)
            for text in partial
            for color in range(1, min(colors, len(set(text)) + 1) + 1)
            if all(text[other] != str(color) for other in earlier[vertex])
        ]
    return tuple(partial)


def _isomorphism_invariant(vertices: int, edges: tuple[tuple[int, int], ...]) -> list[Any]:
    """Colour refinement (Weisfeiler and Leman 1968): equal for isomorphic graphs.

    The rare pair of different graphs it cannot tell apart only ends in the same split.
    """
    neighbours = [[a if b == v else b for a, b in edges if v in (a, b)] for v in range(vertices)]
    rank, invariant = [0] * vertices, []
    for _ in range(vertices):
        seen = [(rank[v], sorted(rank[other] for other in neighbours[v])) for v in range(vertices)]
        kinds = sorted(seen)
        invariant.append(kinds)
        rank = [kinds.index(kind) for kind in seen]
    return invariant
