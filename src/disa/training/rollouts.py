"""Completions by vLLM in training: an engine in the policy's precision, and proof that the two agree.

TRL 1.16 tells vLLM no dtype, and vLLM's own choice for a float32 checkpoint is bfloat16: the policy would be sampled
from another distribution than the one whose log-probabilities are in the loss.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from trl import GRPOConfig
from trl.generation import vllm_generation

from disa.errors import DisaError
from disa.lm.loading import free_vllm
from disa.training.policy_log_probs import own_mask

if TYPE_CHECKING:
    from disa.training.shared_prompt_trainer import SharedPromptTrainer

BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Largest mean gap, nats per token: ``scoring.parity_bound`` by default, and what it should be in bfloat16."""


@contextlib.contextmanager
def policy_precision(model: Any, args: GRPOConfig) -> Iterator[None]:
    """While a trainer is made, let TRL's engine have the policy's dtype; refuse a server that was started otherwise.

    Raises DisaError where the server cannot be reached or has other settings; it says how to start it.
    """
    if not args.use_vllm:
        yield
        return
    dtype = _dtype(model, args)
    if args.vllm_mode == "server":
        _check_server(args, model if isinstance(model, str) else model.name_or_path, dtype)
    plain = vllm_generation.LLM
    vllm_generation.LLM = functools.partial(plain, dtype=str(dtype).removeprefix("torch."))
    try:
        yield
    finally:
        vllm_generation.LLM = plain


def check_gap(trainer: SharedPromptTrainer, batch: dict[str, Any], bound: float | None) -> None:
    """Refuse fresh completions whose sampler and trainer disagree; the step log has the gap as ``rollouts/gap``.

    The gap is that of the scoring stage: the mean over completions of ``|log pi - log pi_sampler|`` per token. Raises
    DisaError naming the gap and the bound. A ``bound`` of None is that of the precision.
    """
    mask = own_mask(batch)
    difference = trainer.fresh_log_probs(batch).double() - batch["sampling_per_token_logps"].double()
    gaps = (difference * mask).sum(dim=1).abs() / mask.sum(dim=1).clamp(min=1)
    gap = trainer.accelerator.gather(gaps).mean().item()
    trainer._metrics["train" if trainer.model.training else "eval"]["rollouts/gap"].append(gap)
    bound = BOUNDS[_dtype(trainer.accelerator.unwrap_model(trainer.model), trainer.args)] if bound is None else bound
    if not gap <= bound:
        raise DisaError(
            f"vLLM's log-probabilities differ from the trainer's by {gap:.2g} nats per token (mean), bound {bound:.2g}",
            where=f"training step {trainer.state.global_step + 1}, field training.vllm.parity_bound",
            fix="make sure that vLLM has the policy's weights, precision and tokenizer",
        )


def free_engine(trainer: Any) -> None:
    """Free the memory of the engine inside a trainer, where there is one, for the next method."""
    generation: Any = getattr(trainer, "vllm_generation", None)
    if llm := getattr(generation, "llm", None):
        generation.llm = None
        free_vllm(llm)


def _dtype(model: Any, args: GRPOConfig) -> torch.dtype:
    """What the policy computes in: autocast's dtype, or that of its weights."""
    if args.bf16 or args.fp16:
        return torch.bfloat16 if args.bf16 else torch.float16
    return getattr(model, "dtype", torch.float32)


def _check_server(args: GRPOConfig, model: str, dtype: torch.dtype) -> None:
    url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    name = str(dtype).removeprefix("torch.")
    start = f"--dtype {name} --logprobs-mode processed_logprobs --max-logprobs -1"
    start += f" --weight-transfer-config {shlex.quote(json.dumps({'backend': 'nccl'}))}"
    fix = f"start it with: VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(model)} {start}"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/server_info?config_format=json", timeout=60) as reply:
            config = json.load(reply)["vllm_config"]
        found = {name: config["model_config"][name] for name in ("dtype", "logprobs_mode", "max_logprobs")}
        transfer = config["weight_transfer_config"]
    except urllib.error.HTTPError as error:
        error.close()
        missing = error.code == 404
        problem = "the server has no development endpoints" if missing else f"the server answered {error.code}"
        raise DisaError(problem, where=url, fix=fix) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DisaError(f"no vLLM server answers ({error})", where=url, fix=fix) from error
    wanted = {"dtype": str(dtype), "logprobs_mode": "processed_logprobs", "max_logprobs": -1}
    for setting, value in wanted.items():
        if found[setting] != value:
            raise DisaError(f"the server has {setting} {found[setting]}, expected {value}", where=url, fix=fix)
    if not transfer:
        raise DisaError("the server takes no weights, it has no weight_transfer_config", where=url, fix=fix)
