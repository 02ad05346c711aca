"""Shortest path: name the vertices of a shortest path between two vertices of a small graph."""

from __future__ import annotations

import functools
import random
from typing import Any

from disa.runs.records import Prompt
from disa.tasks.config import ShortestPathConfig
from disa.tasks.graphs import (
    VERTICES,
    Edges,
    edges_text,
    graph_neighbours,
    hashable_edges,
    isomorphism_invariant,
    random_edges,
)
from disa.tasks.task import Task, read_payload


class ShortestPath(Task):
    """A path is its vertices from start to end, and each of the shortest ones is a mode of its own."""

    name = "shortest_path"
    version = 1
    characters = VERTICES + " "
    config: ShortestPathConfig

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        """A random graph and two of its vertices, far enough apart and with enough shortest paths."""
        n = self.config.vertices
        edges = random_edges(n, self.config.edge_probability, rng)
        start, end = rng.sample(range(n), 2)
        payload = {"vertices": n, "edges": edges, "start": start, "end": end}
        paths = _shortest_paths(n, hashable_edges(edges), start, end)
        # A path of m edges names m + 1 vertices.
        if len(paths) < self.config.min_solutions or len(paths[0]) <= self.config.min_length:
            return None
        return payload

    def identity(self, payload: dict[str, Any]) -> str:
        """The same for isomorphic graphs with the same two ends, in either direction."""
        return str(isomorphism_invariant(payload["vertices"], payload["edges"], {payload["start"], payload["end"]}))

    def text(self, payload: dict[str, Any]) -> str:
        """The template, filled in."""
        ends = VERTICES[payload["start"]] + VERTICES[payload["end"]]
        return self.config.prompt_template.format(edges=edges_text(payload["edges"]), ends=ends)

    def solutions(self, prompt: Prompt) -> list[str]:
        """Every shortest path, sorted."""
        vertices, edges, start, end = read_payload(prompt, "vertices", "edges", "start", "end")
        return list(_shortest_paths(vertices, hashable_edges(edges), start, end))

    def mode(self, prompt: Prompt, completion: str) -> str | None:
        """The path, where the completion names the vertices of a shortest one."""
        text = completion.strip()
        return text if text in self.solutions(prompt) else None

    def demonstration(self, prompt: Prompt, rng: random.Random, *, noisy: bool) -> str:
        """A random shortest path; a noisy one of that length has random vertices between its ends."""
        path = rng.choice(self.solutions(prompt))
        if not noisy:
            return path
        (vertices,) = read_payload(prompt, "vertices")
        return path[0] + "".join(rng.choices(VERTICES[:vertices], k=len(path) - 2)) + path[-1]


@functools.lru_cache(maxsize=65536)
def _shortest_paths(vertices: int, edges: Edges, start: int, end: int) -> tuple[str, ...]:
    """All shortest paths, sorted; none where the ends are not connected. Breadth first, a layer at a time."""
    joined = graph_neighbours(vertices, edges)
    paths: list[tuple[int, ...]] = [(start,)]
    seen = {start}
    while paths and end not in seen:
        paths = [(*path, other) for path in paths for other in joined[path[-1]] if other not in seen]
        seen |= {path[-1] for path in paths}
    return tuple(sorted("".join(VERTICES[v] for v in path) for path in paths if path[-1] == end))
