"""llama.cpp serving real models: its own server, as a program or inside xllamacpp, or llama-cpp-python's.

Each runs where it is installed: ``make test-vllm`` installs xllamacpp.

The models are those that packages carry as quantised GGUF files. llama.cpp computes with the quantised weights and
quantised activations, transformers with the same weights dequantised, in float32.
"""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from disa.lm.loading import load_model, load_tokenizer
from disa.lm.log_probs import sequence_log_probs
from disa.lm.sampling_config import SamplingConfig, encode_prompt, stop_token_ids
from disa.proposals.config import OpenAIConfig
from disa.proposals.openai_engine import OpenAIEngine
from disa.proposals.protocol import Job, job_seed
from disa.warmup.embedded_models import EMBEDDED_MODELS, embedded_model_folder

SERVER = os.environ.get("DISA_LLAMA_SERVER") or shutil.which("llama-server")
# An interpreter that has llama-cpp-python[server], this one or another.
PYTHON = os.environ.get("DISA_LLAMA_CPP_PYTHON") or (sys.executable if find_spec("llama_cpp") else None)
# llama-server's own code as a library: the same options, the same replies.
EMBEDDED = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 512, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
time.sleep(86400)
"""
PROMPTS = ("The capital of France is", "def add(a, b):")
LIMIT = 8
# Nats per token, mean over trajectories: quantised activations were seen to move SmolLM2's by 0.02 to 0.04.
BOUND = 0.1


def commands(gguf, port):
    """Command line of each server and how it takes prompts."""
    binding = ["-m", "llama_cpp.server", "--model", gguf, "--port", port, "--logits_all", "true", "--n_ctx", "512"]
    return {
        "llama-server": (
            SERVER,
            ["-m", gguf, "--port", port, "-c", "512", "-np", "1", "--host", "127.0.0.1"],
            "tokens",
        ),
        "xllamacpp": (sys.executable if find_spec("xllamacpp") else None, ["-c", EMBEDDED, gguf, port], "tokens"),
        "llama-cpp-python": (PYTHON, [*binding, "--host", "127.0.0.1"], "text"),
    }


@pytest.fixture(
    scope="module",
    params=itertools.product(["llama-server", "xllamacpp", "llama-cpp-python"], EMBEDDED_MODELS),
    ids=" ".join,
)
def served(request, tmp_path_factory):
    """The model on this machine, its tokenizer, and the settings of an engine that draws from a server of it."""
    name, base = request.param
    if commands("", "")[name][0] is None:
        pytest.skip(f"{name} is not installed")
    gguf = EMBEDDED_MODELS[base].find_gguf(tmp_path_factory.mktemp("gguf"))
    if gguf is None:
        pytest.skip(f"the package {EMBEDDED_MODELS[base].package} is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, arguments, prompts = commands(str(gguf), str(port))[name]
    folder = embedded_model_folder(base)
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen([program, *arguments], stdout=output, stderr=output)
    try:
        _wait(f"http://127.0.0.1:{port}/v1/models", server, log)
        endpoint = f"openai:http://127.0.0.1:{port}/v1#{base}"
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
    sampling = SamplingConfig(max_completion_length=limit)
    ids = encode_prompt(tokenizer, prompt, sampling)
    jobs = [Job(prompt, ids, i, job_seed(0, prompt, "proposal", i)) for i in range(n)]
    return jobs, OpenAIEngine(config.proposal, sampling, stop_token_ids(model, tokenizer), tokenizer, config).draw(jobs)


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
    jobs, draws = draw(served, "The", 60, 1)
    with torch.inference_mode():
        p = model(torch.tensor([jobs[0].prompt_ids])).logits[0, -1].double().softmax(-1)
    kept = set(torch.topk(p, 40).indices.tolist()) & set((p >= 0.05 * p.max()).nonzero().flatten().tolist())
    outside = 1.0 - float(p[sorted(kept)].sum())
    found = sum(d.completion_ids[0] not in kept for d in draws)
    print(f"{found} of {len(draws)} draws outside, {outside:.3f} expected")
    # Of a server that keeps its defaults none would be: with so much outside, 60 draws tell.
    assert outside > 0.2
    assert binomtest(found, len(draws), outside).pvalue > 1e-4
