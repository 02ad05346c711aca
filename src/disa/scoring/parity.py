"""Parity of sampler and scorer: do they mean the same distribution.

A trajectory's log-probability is computed twice, by the sampler that drew it and by the scorer.
Where they disagree, every importance weight is wrong by that factor, and nothing downstream shows
it: a temperature, template, tokenizer or precision mismatch. So the disagreement is measured and
bounded, per source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disa.errors import DisaError
from disa.runs.records import ScoredTrajectory


def parity_report(
    rows: list[ScoredTrajectory], bound: float, models: Sequence[str] = ("reference", "proposal")
) -> dict[str, Any]:
    """Absolute differences per token between the sampler's and the scorer's log-probability.

    Of each source in ``models``, whose model the scorer has: ``mean`` and ``max`` over its trajectories in nats per
    token, and the count; with the ``bound`` of the means. Trajectories that only one of the two has a number for are
    counted as ``unchecked``.
    """
    report: dict[str, Any] = {"bound": bound, "unit": "nats per token"}
    both = [row for row in rows if row.source in models and row.log_sampler is not None]
    if len(both) < len(rows):
        report["unchecked"] = len(rows) - len(both)
    for source in sorted({row.source for row in both}):
        mine = [row for row in both if row.source == source]
        scored = np.array([row.log_ref if source == "reference" else row.log_proposal for row in mine])
        tokens = np.array([max(1, row.own_length) for row in mine])
        difference = np.abs(scored - np.array([row.log_sampler for row in mine])) / tokens
        report[source] = {"mean": float(difference.mean()), "max": float(difference.max()), "trajectories": len(mine)}
    return report


def check_parity(report: dict[str, Any]) -> None:
    """Refuse trajectories whose sampler and scorer disagree."""
    for source in ("reference", "proposal"):
        if source in report and not report[source]["mean"] <= report["bound"]:
            raise DisaError(
                f"sampler and scorer disagree on {source} draws by {report[source]['mean']:.2g} nats per token "
                f"(mean; largest {report[source]['max']:.2g}), bound {report['bound']:.2g}",
                where="stage 3_scoring, field scoring.parity_bound",
                fix="make sure both used the same weights, temperature, chat template and tokenizer; "
                "in bfloat16 raise scoring.parity_bound to 0.02; start a vLLM server by: "
                "vllm serve MODEL --dtype float32 --logprobs-mode processed_logprobs",
            )
