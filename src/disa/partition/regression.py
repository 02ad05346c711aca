"""The regressor inside the partition stage: posterior per prompt, prediction where nothing was drawn, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from disa.errors import DisaError
from disa.lm.sampling_config import SamplingConfig, encode_prompt
from disa.partition.estimate import LogPartitionBatch
from disa.partition.features import features_fingerprint, prompt_features
from disa.partition.log_weights import Array
from disa.partition.regressor import LogZPosterior, Regressor
from disa.partition.regressor_fit import MIN_PROMPTS, fit_regressor, pseudo_counts
from disa.partition.regressor_report import report_regressor
from disa.partition.verdict import MAX_INTERVAL_WIDTH
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate, Prompt

if TYPE_CHECKING:
    from disa.lm.models import Models

POSTERIOR, PREDICTED = "posterior", "predicted"
"""Methods of rows that the regressor has touched: with trajectories of their own, and without."""

HELD_BACK = 5
"""Without enough held-out prompts, one training prompt in five is held back from the fit that is reported."""


@dataclasses.dataclass(frozen=True)
class PromptFeatures:
    """Features of every prompt of the run, and what they were computed from."""

    by_prompt: Mapping[str, Array]
    """Prompt id to features, shape (d,)."""
    fingerprint: str
    """:func:`disa.partition.features.features_fingerprint` of the run."""

    def of(self, prompts: Sequence[Prompt]) -> Array:
        """Features of some prompts, shape (prompts, d)."""
        return np.stack([self.by_prompt[prompt.prompt_id] for prompt in prompts])


def reference_features(
    models: Models, sampling: SamplingConfig, fingerprint: Fingerprint, prompts: Sequence[Prompt]
) -> PromptFeatures:
    """What the regressor knows of prompts: the frozen reference's states."""
    tokenizer = models.tokenizer()
    features = prompt_features(
        models.load(("reference",))["reference"], [encode_prompt(tokenizer, p.prompt, sampling) for p in prompts]
    )
    by_prompt = dict(zip((p.prompt_id for p in prompts), features, strict=True))
    return PromptFeatures(by_prompt, features_fingerprint(fingerprint))


def regress(
    estimates: Sequence[PartitionEstimate],
    batch: LogPartitionBatch,
    drawn: Sequence[Prompt],
    undrawn: Sequence[Prompt],
    features: PromptFeatures,
    *,
    beta: float,
    reward_range: tuple[float, float],
    level: float,
) -> tuple[Regressor, list[PartitionEstimate], dict[str, Any]]:
    """Fit on the training prompts and let every prompt borrow strength.

    ``estimates`` and ``batch`` are the same estimates, of the ``drawn`` prompts in their order, as rows and as arrays;
    prompts for evaluation never enter the fit. The rows returned are first the drawn prompts with their posterior
    (method ``posterior``; pass rates and mixtures alike), then the others with their prediction (method and flag
    ``predicted``). The report says how well prompts outside the fit are predicted from features alone. Raises DisaError
    with fewer than 20 training prompts.
    """
    k, n = pseudo_counts(batch)
    at = features.of(drawn)
    train = np.array([prompt.split == "train" for prompt in drawn])
    if train.sum() < MIN_PROMPTS:
        raise DisaError(
            f"{train.sum()} training prompts with trajectories, the regressor needs at least {MIN_PROMPTS}",
            where="partition.regressor",
            fix="set partition.regressor: false, or add training prompts",
        )
    regressor = fit_regressor(k[train], n[train], at[train], features_fingerprint=features.fingerprint)
    report = _report(regressor, k, n, at, train, beta=beta, reward_range=reward_range, level=level)
    sampling: dict[str, Any] = {"beta": beta, "reward_range": reward_range, "level": level}
    rows = _posterior_rows(estimates, posterior_of_estimates(regressor, batch, at, **sampling))
    if undrawn:
        rows += predicted_rows(undrawn, regressor.predict(features.of(undrawn), **sampling), reward_range)
    return regressor, rows, report


def posterior_of_estimates(
    regressor: Regressor, batch: LogPartitionBatch, features: Array, **sampling: Any
) -> LogZPosterior:
    """Posterior of each prompt from its own evidence, or from that of no hits at all where this is larger.

    As in the estimates, hits never speak against the solutions that were not seen.
    """
    seen = regressor.posterior(*pseudo_counts(batch), features, **sampling)
    prior = batch.q_without_hits > 0
    n = np.where(prior, 0.5 / np.where(prior, batch.q_without_hits, 0.5) - 1.0, 0.0)
    none = regressor.posterior(np.zeros(len(n)), n, features, **sampling)
    larger = prior & (none.log_z > seen.log_z)
    fields = zip(dataclasses.astuple(seen), dataclasses.astuple(none), strict=True)
    return LogZPosterior(*(np.where(larger, b, a) for a, b in fields))


def predicted_rows(
    prompts: Sequence[Prompt], predicted: LogZPosterior, reward_range: tuple[float, float]
) -> list[PartitionEstimate]:
    """Rows of prompts without trajectories: no draws, no hits, the prediction and its interval."""
    return [
        PartitionEstimate(
            prompt_id=prompt.prompt_id,
            split=prompt.split,
            **_numbers(predicted, i),
            n=0,
            n_reference=0,
            mean_reward_reference=float(reward_range[0]),
            ess=0.0,
            hits_ess=0.0,
            mean_weight=0.0,
            pareto_k=None,
            method=PREDICTED,
            flags=[*_wide(predicted, i), PREDICTED],
        )
        for i, prompt in enumerate(prompts)
    ]


def _posterior_rows(estimates: Sequence[PartitionEstimate], posterior: LogZPosterior) -> list[PartitionEstimate]:
    """Keep the evidence and its flags; only how wide the interval is has changed."""
    rows = []
    for i, row in enumerate(estimates):
        flags = [flag for flag in row.flags if flag != "wide_interval"] + _wide(posterior, i)
        rows.append(dataclasses.replace(row, **_numbers(posterior, i), method=POSTERIOR, flags=flags))
    return rows


def _numbers(posterior: LogZPosterior, i: int) -> dict[str, Any]:
    return {name: float(getattr(posterior, name)[i]) for name in ("log_z", "q", "interval_low", "interval_high")}


def _wide(posterior: LogZPosterior, i: int) -> list[str]:
    width = posterior.interval_high[i] - posterior.interval_low[i]
    return ["wide_interval"] if width > MAX_INTERVAL_WIDTH else []


def _report(
    regressor: Regressor, k: Array, n: Array, features: Array, train: NDArray[np.bool_], **sampling: Any
) -> dict[str, Any]:
    """Judge the regressor on the other splits' prompts, or one fitted without every fifth training prompt on these."""
    judged = ~train
    if judged.sum() < MIN_PROMPTS:
        order = np.flatnonzero(train)
        judged = np.zeros_like(train)
        judged[order[np.random.default_rng(0).permutation(len(order)) % HELD_BACK == 0]] = True
        rest = train & ~judged
        if rest.sum() < MIN_PROMPTS:
            return {"prompts": 0, "reason": f"fewer than {MIN_PROMPTS} prompts beside those of the fit"}
        regressor = fit_regressor(k[rest], n[rest], features[rest], features_fingerprint="report")
    judged &= n > 0
    return dataclasses.asdict(report_regressor(regressor, k[judged], n[judged], features[judged], **sampling))
