"""The pilot of ``proposals.source: auto``: draws from every source on a few prompts, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disa.errors import DisaError
from disa.lm.blend import blended_sequence_log_probs
from disa.lm.log_probs import sequence_log_probs
from disa.lm.models import Models
from disa.lm.sampling import SamplingConfig, encode_prompt
from disa.partition.candidates import Measured, Pool, compare, measure
from disa.partition.log_weights import Array
from disa.proposals.blends import BlendEngine, Blends, blends_of
from disa.proposals.config import ProposalsConfig
from disa.proposals.run import draw_block
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, Trajectory
from disa.runs.stage import Stage
from disa.tasks import Task
from disa.tasks.checked_rewards import checked_rewards

VERSION = 1
_SOURCES = ("proposal", "bridge", "hinted", "tempered")
"""The first two need a proposal model."""
_APART = 2**32
"""Added to the seed: what is drawn later must not be what the choice was made by."""

_log = logging.getLogger(__name__)


def pilot_stage(
    config: ProposalsConfig,
    sampling: SamplingConfig,
    task: Task,
    models: Models,
    prompts: Callable[[], list[Prompt]],
    inputs: dict[str, StageFolder],
) -> Stage:
    """Describe the stage that chooses ``proposals.source``.

    Parameters
    ----------
    prompts : callable
        Training prompts.
    """

    def work(stage: StageFolder) -> None:
        rows, chosen, why = run_pilot(config, sampling, task, models, prompts()[: config.pilot.prompts])
        candidates = [row._asdict() | {"settings": settings} for row, settings in rows]
        stage.finish(candidates=candidates, choice=rows[chosen][1], chosen=rows[chosen][0].name, why=why)

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
    return [*lines, f"chosen: {folder.manifest['chosen']}; {folder.manifest['why']}"]


def chosen(config: ProposalsConfig, pilot: StageFolder) -> ProposalsConfig:
    """The configuration with what the pilot chose in the place of ``auto``."""
    return ProposalsConfig.model_validate(config.model_dump() | pilot.manifest["choice"])


def run_pilot(
    config: ProposalsConfig, sampling: SamplingConfig, task: Task, models: Models, prompts: Sequence[Prompt]
) -> tuple[list[tuple[Measured, dict[str, Any]]], int, str]:
    """Draw, judge, score and compare.

    Returns
    -------
    list of (Measured, dict), int and str
        Candidates with the settings that choose them, which is chosen, and why.

    Raises
    ------
    DisaError
        Where no draw has a verdict.
    """
    tokenizer = models.tokenizer()
    here = models.load()
    encoded = {p.prompt_id: encode_prompt(tokenizer, p.prompt, sampling) for p in prompts}
    variants = {name: config.model_copy(update={"source": name, "seed": config.seed + _APART}) for name in _SOURCES}
    laws: dict[str, Blends | None] = {}
    for name in _SOURCES if models.has_proposal else _SOURCES[2:]:
        try:
            laws[name] = blends_of(variants[name], sampling, task, prompts, tokenizer)
        except (DisaError, NotImplementedError) as error:  # no worked solutions, or none that the tokenizer knows
            _log.info("pilot: %s is no candidate here: %s", name, error)

    drawn: list[Trajectory] = []
    source: list[int] = []
    for k, name in enumerate(["reference", *laws]):
        role = "proposal" if k else "reference"
        variant = variants[name if k else "proposal"]
        law = laws[name] if k else None
        engines = {"proposal": BlendEngine(law, here, tokenizer, sampling, variant)} if law else {}
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
    prompt_ids, ids = [encoded[row.prompt_id] for row in rows], [row.completion_ids for row in rows]
    log_ref = sequence_log_probs(here["reference"], prompt_ids, ids, temperature=sampling.temperature)
    parts = {
        name: sequence_log_probs(here["proposal"], prompt_ids, ids, temperature=sampling.temperature)[:, None]
        if law is None
        else blended_sequence_log_probs(
            law.streams(here, [row.prompt_id for row in rows], prompt_ids),
            ids,
            law.weights,
            temperature=sampling.temperature,
        )
        for name, law in laws.items()
    }
    wholes = [log_ref, *(np.logaddexp.reduce(part, axis=1) - np.log(part.shape[1]) for part in parts.values())]
    low, high = task.reward_range
    index = {prompt.prompt_id: i for i, prompt in enumerate(prompts)}
    _, number = np.unique([index[row.prompt_id] for row in rows], return_inverse=True)
    pool = Pool(
        prompt=number,
        success=(np.array([rewards[i] for i in kept], dtype=np.float64) - low) / (high - low),
        log_ref=log_ref,
        source=np.array(source)[kept],
        log_sources=np.stack(wholes, axis=1),
    )
    size = here["proposal"].num_parameters() / here["reference"].num_parameters() if models.has_proposal else 1.0
    return _judge(config, pool, {name: (variants[name], parts[name]) for name in laws}, size)


def _judge(
    config: ProposalsConfig, pool: Pool, parts: dict[str, tuple[ProposalsConfig, Array]], size: float
) -> tuple[list[tuple[Measured, dict[str, Any]]], int, str]:
    """Every source as it is configured, and each of its components alone, against the reference."""
    alone = 2.0  # drawn and scored by the reference
    budget, alpha = alone * config.per_prompt, config.reference_share
    found = [measure(pool, "reference", None, reference_share=1.0, cost=alone, budget=budget)]
    settings: list[dict[str, Any]] = [{"source": "proposal", "reference_share": 1.0}]
    for source, (variant, part) in parts.items():
        field = "temperatures" if source == "tempered" else "lambdas"
        values = getattr(variant.blend, field) if source != "proposal" else (None,)
        sets = [tuple(range(len(values)))] + ([(j,) for j in range(len(values))] if len(values) > 1 else [])
        for subset in sets:
            log_mu = np.logaddexp.reduce(part[:, subset], axis=1) - np.log(len(subset))
            chosen_values = [values[j] for j in subset]
            own = {} if source == "proposal" else {"blend": variant.blend.model_dump() | {field: chosen_values}}
            name = source if source == "proposal" else f"{source} {', '.join(f'{v:g}' for v in chosen_values)}"
            cost = _cost(source, size, alpha)
            found.append(measure(pool, name, log_mu, reference_share=alpha, cost=cost, budget=budget))
            settings.append({"source": source} | own)
    rows, best, why = compare(found)
    return list(zip(rows, settings, strict=True)), best, why


def _cost(source: str, size: float, alpha: float) -> float:
    """Forward passes of the reference per token, drawing and scoring; the proposal's count by its size."""
    streams = {"proposal": 1 + size, "bridge": 1 + size, "hinted": 2.0, "tempered": 1.0}[source]
    draw = size if source == "proposal" else streams
    return alpha * (1 + streams) + (1 - alpha) * (draw + streams)
