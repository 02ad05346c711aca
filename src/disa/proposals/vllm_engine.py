"""Draw with vLLM on this machine: its offline ``LLM`` class, prompts and completions as token ids.

One model is in memory at a time: an engine takes the place of the one before it with its first draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from disa.errors import DisaError
from disa.lm.loading import free_vllm, require_vllm
from disa.lm.sampler import Draw
from disa.lm.sampling_config import SamplingConfig
from disa.proposals.protocol import NEUTRAL, Job, finished_draw
from disa.runs.processes import count


class VLLMEngine:
    """One model under vLLM, loaded with its first draw; ``options`` are further arguments of ``vllm.LLM``.

    Raises DisaError where vLLM is not installed, an option is one that is set here, or other processes of a launch see
    these GPUs.
    """

    _loaded: ClassVar[VLLMEngine | None] = None

    def __init__(
        self, model: str, sampling: SamplingConfig, stops: Sequence[int], compute: str, options: dict[str, Any]
    ) -> None:
        require_vllm("proposals.engine")
        if count() > 1 and torch.cuda.device_count() > 1:
            raise DisaError(
                f"{count()} processes of one launch, which see the same GPUs, would all load vLLM on the first",
                where="proposals.engine: vllm",
                fix="draw with plain workers, each with CUDA_VISIBLE_DEVICES of its own, or with --on ray; then launch",
            )
        import vllm

        fixed = {
            "model": model,
            "dtype": compute,
            # Log-probabilities after the temperature: by default vLLM reports those before it.
            "logprobs_mode": "processed_logprobs",
            # The sampling law is the recipe's; a checkpoint's generation defaults are not read.
            "generation_config": "vllm",
        }
        if taken := sorted(fixed.keys() & options.keys()):
            problem = f"{', '.join(taken)} cannot be set, disa sets it"
            raise DisaError(problem, where="recipe, field proposals.vllm", fix="remove it")
        self._sampling, self._stops, self._vllm = sampling, tuple(stops), vllm
        self._arguments, self._llm = fixed | options, None

    def close(self) -> None:
        """Free the model's memory."""
        if VLLMEngine._loaded is self:
            free_vllm(self._llm)
            VLLMEngine._loaded = self._llm = None

    def _load(self) -> Any:
        if VLLMEngine._loaded is not self:
            if VLLMEngine._loaded:
                VLLMEngine._loaded.close()
            self._llm, VLLMEngine._loaded = self._vllm.LLM(**self._arguments), self
        return self._llm

    def draw(self, jobs: Sequence[Job]) -> list[Draw]:
        """One trajectory per job, each with a seed of its own."""
        sampling = self._sampling
        settings = [
            self._vllm.SamplingParams(
                n=1,
                temperature=sampling.temperature,
                top_k=0,
                seed=job.seed,
                max_tokens=sampling.max_completion_length,
                stop_token_ids=list(self._stops),
                logprobs=0,  # of the token drawn, and no others
                **NEUTRAL,
            )
            for job in jobs
        ]
        prompts = [{"prompt_token_ids": list(job.prompt_ids)} for job in jobs]
        outputs = self._load().generate(prompts, settings, use_tqdm=False)
        return [self._read(job, output.outputs[0]) for job, output in zip(jobs, outputs, strict=True)]

    def _read(self, job: Job, completion: Any) -> Draw:
        ids = [int(token) for token in completion.token_ids]
        log_probs = [float(step[token].logprob) for token, step in zip(ids, completion.logprobs, strict=True)]
        where = f"vLLM, prompt {job.prompt_id}, draw {job.draw}"
        return finished_draw(ids, log_probs, self._stops, self._sampling.max_completion_length, where=where)
