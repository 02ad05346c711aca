"""What the proposal's trajectories are drawn from where that is no model of its own: bridges, hints, temperatures.

mu is the even mixture of its components, ``mu = mean_j mu_j``, each a blend of two streams of logits
(:mod:`disa.lm.blend`). Draw n of a prompt comes from component ``(k + n) mod m``, with k uniform by seed and prompt:
each draw alone has the law mu, whatever the number of draws, and m draws in a row take every component once.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.errors import DisaError
from disa.lm.blend import Weights, blended_sequence_log_probs, draw_blended
from disa.lm.sampler import Draw, Stream, uniforms
from disa.lm.sampling_config import SamplingConfig, check_context, encode_prompt, stop_token_ids
from disa.proposals.config import ProposalsConfig
from disa.proposals.protocol import Job
from disa.runs.records import SOURCES, Prompt, Trajectory
from disa.tasks import Task

_REFERENCE: Weights = (1.0, 0.0)


def even_mixture(log_probs: np.ndarray) -> np.ndarray:
    """``log mean_j mu_j``, shape (rows,), from the components' log-probabilities, shape (rows, components)."""
    return np.logaddexp.reduce(log_probs, axis=1) - np.log(log_probs.shape[1])


@dataclasses.dataclass(frozen=True)
class Blends:
    """The components of mu, and the second stream that they lean on.

    Each component weighs the reference's logits and those of the second stream, of the model ``second``, which reads
    the ``hinted`` prompt of a prompt id, by default the reference's prompt.
    """

    weights: tuple[Weights, ...]
    second: str
    hinted: Mapping[str, Sequence[int]] | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """Models that are needed."""
        return SOURCES if self.second == "proposal" else SOURCES[:1]

    def streams(
        self, models: Mapping[str, PreTrainedModel], prompt_ids: Sequence[str], encoded: Sequence[Sequence[int]]
    ) -> list[Stream]:
        """The two streams behind some prompts, given by id and by tokens."""
        second = encoded if self.hinted is None else [self.hinted[prompt_id] for prompt_id in prompt_ids]
        return [Stream(models["reference"], encoded), Stream(models[self.second], second)]

    def log_probs(
        self,
        models: Mapping[str, PreTrainedModel],
        rows: Sequence[Trajectory],
        encoded: Mapping[str, Sequence[int]],
        **how: Any,
    ) -> np.ndarray:
        """Log-probabilities of trajectories under the reference and under mu, shape (rows, 2), in one go."""
        ids = [row.prompt_id for row in rows]
        streams = self.streams(models, ids, [encoded[i] for i in ids])
        weights = (_REFERENCE, *self.weights)
        found = blended_sequence_log_probs(streams, [row.completion_ids for row in rows], weights, **how)
        return np.stack([found[:, 0], even_mixture(found[:, 1:])], axis=1)


def blends_of(
    config: ProposalsConfig, sampling: SamplingConfig, task: Task, prompts: Sequence[Prompt], tokenizer: Tokenizer
) -> Blends | None:
    """The blends that a configuration asks for, None where the model ``proposal`` draws as it is.

    Raises DisaError where a prompt has no worked solution to be told, or is a list of messages.
    """
    blend = config.blend
    towards = tuple((1.0 - share, share) for share in blend.lambdas)
    if config.source == "bridge":
        return Blends(towards, "proposal")
    if config.source == "tempered":
        return Blends(tuple((1.0 / factor, 0.0) for factor in blend.temperatures), "reference")
    if config.source == "hinted":
        if sampling.messages:
            problem = "source: hinted writes prompts of text, and sampling.messages is true"
            raise DisaError(problem, where="recipe, field proposals.source", fix="choose another source")
        texts = {p.prompt_id: _hint(blend.hint, task, p) for p in prompts}
        return Blends(towards, "reference", {i: encode_prompt(tokenizer, text, sampling) for i, text in texts.items()})
    return None


def _hint(template: str, task: Task, prompt: Prompt) -> str:
    solution = task.demonstration(prompt, random.Random(prompt.prompt_id), noisy=False)
    # The solution last: one that says {prompt} stays as it is.
    return template.replace("{prompt}", prompt.prompt).replace("{solution}", solution)


class BlendEngine:
    """Draws the proposal's trajectories from blends."""

    def __init__(
        self,
        blends: Blends,
        models: Mapping[str, PreTrainedModel],
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        config: ProposalsConfig,
    ) -> None:
        self._blends, self._models, self._tokenizer = blends, models, tokenizer
        self._sampling, self._seed = sampling, config.seed
        self._held: dict[str, PreTrainedModel] = {}

    def draw(self, jobs: Sequence[Job]) -> list[Draw]:
        """One trajectory per job; its log-probability is that of the mixture."""
        blends, limit = self._blends, self._sampling.max_completion_length
        self._held = self._held or {role: self._models[role] for role in blends.roles}
        streams = blends.streams(self._held, [job.prompt_id for job in jobs], [job.prompt_ids for job in jobs])
        for model, prompts in streams:
            for job, ids in zip(jobs, prompts, strict=True):
                where = f"prompt {job.prompt_id}, as the blend has it"
                check_context(model.config, list(ids), self._sampling, where=where)
        numbers = np.stack([uniforms(self._seed, job.prompt_id, "proposal", job.draw, limit) for job in jobs])
        count = len(blends.weights)
        component = [(self._first(job.prompt_id, count) + job.draw) % count for job in jobs]
        device = streams[0].model.device
        stops = stop_token_ids(streams[0].model, self._tokenizer)
        rows, log_probs = draw_blended(
            streams,
            blends.weights,
            torch.tensor(component, device=device),
            torch.as_tensor(numbers, device=device),
            stops,
            temperature=self._sampling.temperature,
        )
        found = even_mixture(log_probs).tolist()
        return [Draw(ids, ids[-1] not in stops, log_p) for ids, log_p in zip(rows, found, strict=True)]

    def _first(self, prompt_id: str, count: int) -> int:
        return int(count * uniforms(self._seed, prompt_id, "component", 0, 1)[0])

    def close(self) -> None:
        """Let the models go; the stage may hold them still."""
        self._held = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_held": {}}
