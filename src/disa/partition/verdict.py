"""Flags on estimates, each with what to do next, and the verdict over many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disa.partition.log_weights import Array
from disa.runs.records import PartitionEstimate

MIN_HITS_ESS = 5.0
"""Fewer effective hits than this leave a relative error of q near 1/sqrt(5) = 45% or more."""

MAX_INTERVAL_WIDTH = 2.0
"""Nats; an error of one nat lets the policy be off by 1 - exp(-1) = 63% in total variation."""

MAX_PARETO_K = 0.5
"""Above 1/2 the weights' variance is infinite; 0.7 is too lax at tens to hundreds of draws."""

MAX_MISSING_MASS = 0.5
"""max(0, 1 - mean(w)); noise alone stays below this from about 30 draws with a quarter from the reference."""

FLAGS: dict[str, str] = {
    "gated": "the proposal writes other solutions than the reference, so its draws carry next to nothing: draw more "
    "from the reference (proposals.reference_share, or proposals.adaptive, which finds the share), or use a closer "
    "proposal",
    "few_hits": f"fewer than {MIN_HITS_ESS:g} effective rewarded draws: draw more trajectories (proposals.per_prompt, "
    "proposals.adaptive, or proposals.resample for flagged prompts alone), or use a proposal that solves the prompt "
    "more often",
    "wide_interval": f"the interval is wider than {MAX_INTERVAL_WIDTH:g} nats: draw more trajectories, take a "
    "smaller beta, or train with the group's log Z (training.flagged: group)",
    "heavy_tail": f"Pareto k-hat is above {MAX_PARETO_K:g} and no reference draw bounds the weights: set "
    "proposals.reference_share above 0",
    "missing_mass": f"the draws miss more than {MAX_MISSING_MASS:.0%} of the reference's probability mass: raise "
    "proposals.reference_share, and check that temperature, template and tokenizer of both models agree",
    "no_reference": "no trajectory came from the reference, so weights are unbounded and the interval has no upper "
    "end of its own: set proposals.reference_share above 0",
    "predicted": "no trajectory was drawn, so log Z is the regressor's prediction from the prompt alone: draw "
    "trajectories for the prompt, or train with the group's log Z (training.flagged: group)",
    "text_level": "some completions are known as text only and weighted in the reference's tokens, which need not be "
    "those the proposal drew: use a proposal with the reference's tokenizer, or one that reports token ids",
    "capped": "an adaptive budget stopped at its cap short of the precision asked for: raise "
    "proposals.adaptive.cap, or ask for less (proposals.adaptive.precision)",
}
"""What each flag means, and behind the colon what to do next, by name; docs/concepts.md shows the same."""

MENDED_BY_DRAWS = frozenset({"few_hits", "wide_interval", "missing_mass"})
"""Flags that further draws of the same two models may remove."""

WORST = 10
"""Prompts that a verdict names."""


def flag_prompts(
    *,
    gated: NDArray[np.bool_],
    hits_ess: Array,
    interval_width: Array,
    pareto_k: Array,
    mean_weight: Array,
    n_reference: Array,
) -> tuple[tuple[str, ...], ...]:
    """Names of the flags of each prompt; all arguments have shape (prompts,)."""
    no_reference = n_reference == 0
    raised = {
        "gated": gated,
        "few_hits": hits_ess < MIN_HITS_ESS,
        "wide_interval": interval_width > MAX_INTERVAL_WIDTH,
        "heavy_tail": (pareto_k > MAX_PARETO_K) & no_reference,
        "missing_mass": 1.0 - mean_weight > MAX_MISSING_MASS,
        "no_reference": no_reference,
    }
    # Only the regressor makes estimates without draws, and the stage knows which draws are known as text only and
    # what the budget was.
    assert [*raised, "predicted", "text_level", "capped"] == list(FLAGS)
    codes = sum(marks.astype(np.intp) << bit for bit, marks in enumerate(raised.values()))
    names = {
        code: tuple(name for bit, name in enumerate(raised) if code >> bit & 1) for code in np.unique(codes).tolist()
    }
    return tuple(names[code] for code in codes.tolist())


def verdict(rows: Sequence[PartitionEstimate]) -> dict[str, Any]:
    """Count good, gated and flagged prompts and name the worst, as plain JSON values.

    ``good`` prompts have no flag, ``gated`` ones only that one, ``flagged`` ones any other. The worst are the
    flagged prompts with the widest intervals.
    """
    kinds = ["good" if not r.flags else "gated" if list(r.flags) == ["gated"] else "flagged" for r in rows]
    by_width = sorted(
        (row for row, kind in zip(rows, kinds, strict=True) if kind == "flagged"),
        key=lambda row: (row.interval_low - row.interval_high, row.prompt_id),
    )
    counts = {name: sum(name in row.flags for row in rows) for name in FLAGS}
    return {
        "prompts": len(rows),
        **{kind: kinds.count(kind) for kind in ("good", "gated", "flagged")},
        "flags": {name: {"prompts": count, "meaning": FLAGS[name]} for name, count in counts.items() if count},
        "worst": [
            {
                "prompt_id": row.prompt_id,
                "log_z": row.log_z,
                "interval": [row.interval_low, row.interval_high],
                "hits_ess": row.hits_ess,
                "flags": list(row.flags),
            }
            for row in by_width[:WORST]
        ],
    }
