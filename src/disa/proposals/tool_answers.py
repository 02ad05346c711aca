"""Do tools and environments answer the same words alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from disa.runs.records import Trajectory


def varied_answers(rows: Sequence[Trajectory]) -> tuple[int, int]:
    """Places that several trajectories came to, word for word, and were answered at: with several answers, and all.

    A random answer is in the target, ``reference * exp(beta r) / Z``, with other odds than its own, which no policy can
    change. So a policy stays ``log Z - beta V`` nats from it, V being the best policy's E[r] - KL(pi || pi_ref) / beta.
    """
    found: dict[tuple[str, tuple[int, ...]], list[tuple[int, ...]]] = defaultdict(list)
    for row in rows:
        mask = row.tool_mask or []
        starts = [i for i, own in enumerate(mask) if not own and (i == 0 or mask[i - 1])]
        ids = list(row.completion_ids) if starts else []  # one look at those on disk
        for start in starts:
            end = next((i for i in range(start, len(mask)) if mask[i]), len(mask))
            found[row.prompt_id, tuple(ids[:start])].append(tuple(ids[start:end]))
    seen = [answers for answers in found.values() if len(answers) > 1]
    return sum(len(set(answers)) > 1 for answers in seen), len(seen)
