"""Draw with vLLM on this machine: its offline ``LLM`` class, prompts and completions as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disa.errors import DisaError
from disa.lm.loading import require_vllm
from disa.lm.sampler import Draw
from disa.lm.sampling import SamplingConfig
from disa.proposals.protocol import NEUTRAL, Job, finished_draw


class VLLMEngine:
    """One model under vLLM.

    Parameters
    ----------
    model : str
        Folder or hub id.
    law : SamplingConfig
    stops : sequence of int
        Stop tokens.
    compute : str
        Precision of the weights: ``float32`` or ``bfloat16``.
    options : dict
        Further arguments of ``vllm.LLM``.

    Raises
    ------
    DisaError
        Where vLLM is not installed, or an option is one that is set here.
    """

    def __init__(
        self, model: str, sampling: SamplingConfig, stops: Sequence[int], compute: str, options: dict[str, Any]
    ) -> None:
        require_vllm("proposals.engine")
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
        self._law, self._stops, self._vllm = sampling, tuple(stops), vllm
        self._llm = vllm.LLM(**fixed, **options)

    def draw(self, jobs: Sequence[Job]) -> list[Draw]:
        """One trajectory a job, each with a seed of its own."""
        sampling = self._law
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
        outputs = self._llm.generate(prompts, settings, use_tqdm=False)
        return [self._read(job, output.outputs[0]) for job, output in zip(jobs, outputs, strict=True)]

    def _read(self, job: Job, completion: Any) -> Draw:
        ids = [int(token) for token in completion.token_ids]
        log_probs = [float(step[token].logprob) for token, step in zip(ids, completion.logprobs, strict=True)]
        where = f"vLLM, prompt {job.prompt_id}, draw {job.draw}"
        return finished_draw(ids, log_probs, self._stops, self._law.max_completion_length, where=where)
