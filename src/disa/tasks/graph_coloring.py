"""Graph colouring: name a colour for every vertex so that no edge joins two of the same."""

from __future__ import annotations

import functools
import random
from typing import Any

from disa.runs.records import Prompt
from disa.tasks.config import GraphColoringConfig
from disa.tasks.graphs import VERTICES, Edges, edges_text, hashable_edges, isomorphism_invariant, random_edges
from disa.tasks.task import Task, read_payload


class GraphColoring(Task):
    """Modes are proper colourings modulo renaming the colours; all of them can be enumerated."""

    name = "graph_coloring"
    version = 2
    characters = VERTICES[:8] + "0123456789 "
    config: GraphColoringConfig

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        """A random graph in which every vertex has an edge and enough colourings exist."""
        n, colors = self.config.vertices, self.config.colors
        edges = random_edges(n, self.config.edge_probability, rng)
        payload = {"vertices": n, "colors": colors, "edges": edges}
        covered = {vertex for edge in edges for vertex in edge}
        if len(covered) < n or len(_colorings(n, colors, hashable_edges(edges))) < self.config.min_solutions:
            return None
        return payload

    def identity(self, payload: dict[str, Any]) -> str:
        """The same for isomorphic graphs, and the number of colours."""
        return f"{isomorphism_invariant(payload['vertices'], payload['edges'])}/{payload['colors']}"

    def text(self, payload: dict[str, Any]) -> str:
        """The template, filled in."""
        return self.config.prompt_template.format(edges=edges_text(payload["edges"]), colors=payload["colors"])

    def solutions(self, prompt: Prompt) -> list[str]:
        """Proper colourings, colours numbered in order of first use."""
        vertices, colors, edges = read_payload(prompt, "vertices", "colors", "edges")
        return list(_colorings(vertices, colors, hashable_edges(edges)))

    def mode(self, prompt: Prompt, completion: str) -> str | None:
        """The colouring in order of first use, where the completion is one colour digit per vertex and proper."""
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


@functools.lru_cache(maxsize=65536)
def _colorings(vertices: int, colors: int, edges: Edges) -> tuple[str, ...]:
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
