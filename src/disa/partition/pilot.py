"""The pilot of ``proposals.source: auto``: draws from every source on a few prompts, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from disa.errors import DisaError
from disa.lm.blend import blended_sequence_log_probs
from disa.lm.log_probs import sequence_log_probs
from disa.lm.models import Models
from disa.lm.sampling_config import SamplingConfig, encode_prompt
from disa.partition.candidates import MeasuredCandidate, PilotDraws, compare_candidates, measure_candidate
from disa.partition.log_weights import Array
from disa.proposals.blends import BlendEngine, Blends, blends_of, even_mixture
from disa.proposals.config import ProposalsConfig
from disa.proposals.run import draw_block
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, Trajectory
from disa.runs.stage import Stage
from disa.tasks import Task
from disa.tasks.checked_rewards import checked_rewards

VERSION = 2
_SOURCES = ("proposal", "bridge", "hinted", "tempered")
"""The first two need a proposal model."""
_APART = 2**32
"""Added to the seed: what is drawn later must not be what the choice was made by."""


def pilot_stage(
    config: ProposalsConfig,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: Callable[[], list[Prompt]],
    inputs: dict[str, StageFolder],
) -> Stage:
    """Describe the stage that chooses ``proposals.source``."""

    def work(stage: StageFolder) -> None:
        found = run_pilot(config, sampling, task, models, prompts()[: config.pilot.prompts])
        rows, best = found.candidates, found.candidates[found.best]
        stage.finish(
            candidates=[row._asdict() | {"settings": settings} for row, settings in rows],
            choice=best[1],
            chosen=best[0].name,
            why=found.why,
            left_out=found.left_out,
        )

    identity = {"proposals": config.identity(), "sampling": sampling.identity(), "reward": task.reward_fingerprint}
    identity |= models.identity("reference", "proposal")
    return Stage("proposals", "pilot", VERSION, identity, inputs, work, says=_says)


def _says(folder: StageFolder) -> list[str]:
    rows = folder.manifest["candidates"]
    lines = [
        f"{row['name']}: D {row['divergence']:.2f} nats, {row['hits']:.3f} effective hits per draw, "
        f"cost {row['cost']:.1f}, error {row['error']:.3f}"
        for row in rows
    ]
    lines += [f"{name} is no candidate: {reason}" for name, reason in folder.manifest["left_out"].items()]
    return [*lines, f"chosen: {folder.manifest['chosen']}; {folder.manifest['why']}"]


def chosen_source(config: ProposalsConfig, pilot: StageFolder) -> ProposalsConfig:
    """The configuration with what the pilot chose in the place of ``auto``."""
    return ProposalsConfig.model_validate(config.model_dump() | pilot.manifest["choice"])


class PilotCandidate(NamedTuple):
    """One distribution that the proposal's trajectories could have."""

    name: str
    log_mu: Array | None
    """Of the scored rows, shape (n,); None for the reference alone."""
    reference_share: float
    cost: float
    """Forward passes of the reference per token of a trajectory, drawing it and scoring it."""
    settings: dict[str, Any]
    """Fields of ``ProposalsConfig`` that choose it."""


SourceBlends = dict[str, tuple[ProposalsConfig, Blends | None]]
"""By source, the settings that draw from it and its blends."""


def possible_sources(
    config: ProposalsConfig,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: Sequence[Prompt],
    *,
    seed: int,
) -> tuple[SourceBlends, dict[str, str]]:
    """Every source that these models and prompts allow, and why the others do not."""
    found: SourceBlends = {}
    left_out: dict[str, str] = {}
    for name in _SOURCES if models.has_proposal else _SOURCES[2:]:
        variant = config.model_copy(update={"source": name, "seed": seed})
        try:
            found[name] = variant, blends_of(variant, sampling, task, prompts, models.tokenizer())
        except (DisaError, NotImplementedError) as error:  # no worked solutions, or none that the tokenizer knows
            left_out[name] = str(error)
    return found, left_out


class Pilot(NamedTuple):
    """What a pilot found."""

    candidates: list[tuple[MeasuredCandidate, dict[str, Any]]]
    """With the settings that choose each."""
    best: int
    """Index of the one that is chosen."""
    why: str
    left_out: dict[str, str]
    """By source, why it is no candidate."""


def run_pilot(
    config: ProposalsConfig, sampling: SamplingConfig, task: Task, models: Models, prompts: Sequence[Prompt]
) -> Pilot:
    """Draw, judge, score and compare.

    Raises DisaError where no draw has a verdict.
    """
    tokenizer, here = models.tokenizer(), models.load(compute=config.compute, together=True)
    sources, left_out = possible_sources(config, sampling, task, models, prompts, seed=config.seed + _APART)
    drawn: list[Trajectory] = []
    source: list[int] = []
    for k, (role, variant, blends) in enumerate(
        [("reference", config.model_copy(update={"seed": config.seed + _APART}), None)]
        + [("proposal", variant, blends) for variant, blends in sources.values()]
    ):
        engines = {"proposal": BlendEngine(blends, here, tokenizer, sampling, variant)} if blends else {}
        plan = {p.prompt_id: {role: range(config.pilot.draws)} for p in prompts}
        block = [(p, role) for p in prompts]
        for batch in draw_block(block, plan, variant, sampling, here, tokenizer, engines):
            drawn += batch
            source += [k] * len(batch)
    by_id = {p.prompt_id: p for p in prompts}
    rewards = checked_rewards(task, [by_id[row.prompt_id] for row in drawn], [row.completion for row in drawn])
    kept = [i for i, reward in enumerate(rewards) if reward is not None]
    if not kept:
        problem = f"the reward is None, undecided, for all {len(drawn)} completions of the pilot"
        raise DisaError(problem, where=f"task {task.name}, field reward", fix="return a number where one can be judged")
    rows = [drawn[i] for i in kept]
    log_ref, parts = score_under(sources, rows, prompts, sampling, models, here)
    low, high = task.reward_range
    _, number = np.unique([row.prompt_id for row in rows], return_inverse=True)
    pool = PilotDraws(
        prompt=number,
        success=(np.array([rewards[i] for i in kept], dtype=np.float64) - low) / (high - low),
        log_ref=log_ref,
        source=np.array(source)[kept],
        log_sources=np.stack([log_ref, *map(even_mixture, parts.values())], axis=1),
    )
    found = pilot_candidates(config, sources, parts, here, models.has_proposal)
    budget = found[0].cost * config.per_prompt
    measured, best, why = compare_candidates(
        [
            measure_candidate(
                pool, one.name, one.log_mu, reference_share=one.reference_share, cost=one.cost, budget=budget
            )
            for one in found
        ]
    )
    return Pilot([(row, one.settings) for row, one in zip(measured, found, strict=True)], best, why, left_out)


def score_under(
    sources: SourceBlends,
    rows: Sequence[Trajectory],
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    models: Models,
    here: Mapping[str, Any],
) -> tuple[Array, dict[str, Array]]:
    """Log-probabilities of completions under the reference and under every component of every source.

    Shape (n,), and by source (n, components).
    """
    tokenizer = models.tokenizer()
    encoded = {p.prompt_id: encode_prompt(tokenizer, p.prompt, sampling) for p in prompts}
    names, completions = [row.prompt_id for row in rows], [row.completion_ids for row in rows]
    prompt_ids, how = [encoded[name] for name in names], {"temperature": sampling.temperature}
    found = {}
    for source, (_, blends) in sources.items():
        if blends is None:
            found[source] = sequence_log_probs(here["proposal"], prompt_ids, completions, **how)[:, None]
        else:
            streams = blends.streams(here, names, prompt_ids)
            found[source] = blended_sequence_log_probs(streams, completions, blends.weights, **how)
    return sequence_log_probs(here["reference"], prompt_ids, completions, **how), found


def pilot_candidates(
    config: ProposalsConfig,
    sources: SourceBlends,
    parts: Mapping[str, Array],
    here: Mapping[str, Any],
    has_proposal: bool,
) -> list[PilotCandidate]:
    """The reference alone, every source as it is configured, and each of its components alone."""
    size = here["proposal"].num_parameters() / here["reference"].num_parameters() if has_proposal else 1.0
    alpha = config.reference_share
    found = [PilotCandidate("reference", None, 1.0, 2.0, {"source": "proposal", "reference_share": 1.0})]
    for source, (variant, blends) in sources.items():
        cost = _cost(source, size, alpha)
        if blends is None:
            found.append(PilotCandidate(source, even_mixture(parts[source]), alpha, cost, {"source": source}))
            continue
        field = "temperatures" if source == "tempered" else "lambdas"
        values = getattr(variant.blend, field)
        for subset in [tuple(range(len(values))), *((j,) for j in range(len(values)) if len(values) > 1)]:
            own = [values[j] for j in subset]
            name = f"{source} {', '.join(f'{value:g}' for value in own)}"
            settings = {"source": source, "blend": variant.blend.model_dump() | {field: own}}
            found.append(PilotCandidate(name, even_mixture(parts[source][:, subset]), alpha, cost, settings))
    return found


def passes_per_token(source: str, size: float) -> float:
    """Forward passes of the reference that scoring takes; those of the proposal count by its size."""
    return {"proposal": 1 + size, "bridge": 1 + size, "hinted": 2.0, "tempered": 1.0}[source]


def _cost(source: str, size: float, alpha: float) -> float:
    """Drawn by one stream or two, scored under the reference and mu; the proposal's passes count by its size."""
    streams = passes_per_token(source, size)
    draw = size if source == "proposal" else streams
    return alpha * (1 + streams) + (1 - alpha) * (draw + streams)
