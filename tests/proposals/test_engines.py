"""Engines draw from the sampling law and say so, or are refused."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chisquare
from served_oracle import OracleServer, install_vllm

from disa.errors import DisaError
from disa.lm.sampling_config import SamplingConfig
from disa.proposals.config import ProposalsConfig
from disa.proposals.engines import make_engines
from disa.proposals.protocol import finished_draw, job_seed
from disa.proposals.run import run_proposals
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, Trajectory
from disa.testing import Space, random_model
from disa.testing.hf import PROMPTS, oracle_tokenizer, save_oracle

SPACE = Space(vocabulary=4, length_limit=4)
TABLE = random_model(SPACE, len(PROMPTS), np.random.default_rng(0))
TOKENIZER = oracle_tokenizer(SPACE)
LAW = SamplingConfig(max_completion_length=SPACE.length_limit)
ROWS = [Prompt(p, "oracle", "train", p, "{}", None) for p in PROMPTS[:3]]
EXACT_DIALECTS = ("vllm", "older vllm", "llama.cpp")
# Four token log-probabilities below 10 nats each in float64, through JSON's shortest round trip; exp and log for one.
FLOAT64 = 4 * 10 * 2.0**-50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("oracle") / "model"
    save_oracle(TABLE, path)
    return path


def draw(run_dir, folder, config, sampling=LAW, rows=ROWS, proposal=None):
    """Trajectories of a stage whose two models are the oracle's folder, or its proposal another."""
    stage = StageFolder(run_dir, "2_proposals", version=1, identity={}, inputs={})
    stage.begin()
    paths = {"reference": folder, "proposal": proposal or folder}
    engines = make_engines(config, sampling, rows, paths, TOKENIZER)
    run_proposals(stage, config, sampling, rows, {}, TOKENIZER, engines=engines)
    return stage.rows(Trajectory), stage.manifest


def from_server(server, **settings):
    servers = {"reference": server.endpoint, "proposal": server.endpoint}
    settings = {"per_prompt": 16, **settings}
    return ProposalsConfig(engine="openai", openai=servers | settings.pop("openai", {}), **settings)


def check_rows(rows, temperature=1.0):
    """Every row is a completion with the exact log-probability of the table."""
    table = dataclasses.replace(TABLE, logits=TABLE.logits / temperature)
    for row in rows:
        number = SPACE.number(row.completion_ids)  # raises where the ids are no completion
        assert row.truncated == bool(SPACE.truncated[number])
        assert row.completion == "".join(" abc"[t] for t in row.completion_ids if t)
        assert row.log_sampler == pytest.approx(table.log_probs[int(row.prompt_id), number], abs=FLOAT64 / temperature)
        assert not row.retokenised


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dialect", EXACT_DIALECTS)
def test_servers_that_report_token_ids_give_exact_trajectories(tmp_path, folder, dialect, temperature):
    sampling = SamplingConfig(max_completion_length=SPACE.length_limit, temperature=temperature)
    with OracleServer(TABLE, dialect) as server:
        rows, manifest = draw(tmp_path, folder, from_server(server), sampling)
    check_rows(rows, temperature)
    assert len(rows) == 3 * 16
    assert {row.truncated for row in rows} == {True, False}
    facts = {"engine": "openai", "retokenised": 0, "without_log_prob": 0, "left_out": 0}
    assert {name: manifest[name] for name in facts} == facts


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_vllm_gives_exact_trajectories_after_the_temperature(tmp_path, folder, monkeypatch, temperature):
    made = install_vllm(monkeypatch, TABLE)
    sampling = SamplingConfig(max_completion_length=SPACE.length_limit, temperature=temperature)
    config = ProposalsConfig(engine="vllm", per_prompt=16, compute="bfloat16", vllm={"tensor_parallel_size": 2})
    rows, manifest = draw(tmp_path, folder, config, sampling)
    check_rows(rows, temperature)
    assert manifest["engine"] == "vllm"
    # One model for both sources.
    assert [llm.arguments for llm in made] == [
        {
            "model": str(folder),
            "dtype": "bfloat16",
            "generation_config": "vllm",
            "tensor_parallel_size": 2,
        }
    ]
    assert made[0].ended
    assert {tuple(params.stop_token_ids) for params in made[0].seen} == {(0,)}


def test_vllm_has_one_of_two_models_in_memory_at_a_time_and_each_once(tmp_path, folder, monkeypatch):
    made = install_vllm(monkeypatch, TABLE)  # refuses to load one before the other has ended
    other = shutil.copytree(folder, tmp_path / "other")
    config = ProposalsConfig(engine="vllm", per_prompt=16, prompts_per_part=1)
    rows, _ = draw(tmp_path / "run", folder, config, proposal=other)
    assert [llm.arguments["model"] for llm in made] == [str(folder), str(other)]
    assert all(llm.ended for llm in made)
    # The same trajectories as from a model that stays.
    one, _ = draw(tmp_path / "one", folder, config)
    key = lambda row: (row.prompt_id, row.source, row.draw)  # noqa: E731
    assert sorted(rows, key=key) == sorted(one, key=key) and len(rows) == 3 * 16


def test_vllm_refuses_options_that_would_change_the_law_and_is_refused_where_it_is_missing(folder, monkeypatch):
    paths = {"reference": folder, "proposal": folder}
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed, where it is
    with pytest.raises(DisaError, match="proposals.engine: vllm is not installed. Fix: pip install 'vllm"):
        make_engines(ProposalsConfig(engine="vllm"), LAW, ROWS, paths, TOKENIZER)
    install_vllm(monkeypatch, TABLE)
    with pytest.raises(DisaError, match="proposals.vllm: logprobs_mode cannot be set"):
        make_engines(
            ProposalsConfig(engine="vllm", vllm={"logprobs_mode": "raw_logprobs"}), LAW, ROWS, paths, TOKENIZER
        )


def test_vllm_is_refused_where_processes_of_a_launch_see_the_same_gpus(folder, monkeypatch):
    install_vllm(monkeypatch, TABLE)
    paths = {"reference": folder, "proposal": folder}
    monkeypatch.setenv("WORLD_SIZE", "8")
    # Each process its own GPU, or none: nothing is shared.
    make_engines(ProposalsConfig(engine="vllm"), LAW, ROWS, paths, TOKENIZER)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(DisaError, match="8 processes of one launch, which see the same GPUs"):
        make_engines(ProposalsConfig(engine="vllm"), LAW, ROWS, paths, TOKENIZER)


def test_draws_of_a_server_have_the_exact_frequencies_of_the_table(tmp_path, folder):
    n = 500
    with OracleServer(TABLE, "vllm") as server:
        config = from_server(server, per_prompt=n, reference_share=0, batch_size=n)
        rows, _ = draw(tmp_path, folder, config, rows=ROWS[2:3])
    expected = n * np.exp(TABLE.log_probs[2])
    common = expected >= 5  # the usual smallest cell of a chi-square test; rarer ones share a cell
    counts = np.bincount([SPACE.number(row.completion_ids) for row in rows], minlength=SPACE.completions)
    observed = np.append(counts[common], counts[~common].sum())
    # At a fixed seed an honest engine, with seeds that do not repeat, fails for one seed in 10,000.
    assert chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > 1e-4


@pytest.mark.parametrize(
    "changes", [{"batch_size": 5}, {"prompts_per_part": 1}, {"openai": {"concurrency": 1}}], ids=str
)
def test_a_trajectory_depends_on_its_own_identity_alone(tmp_path, folder, changes):
    with OracleServer(TABLE, "llama.cpp") as server:
        plain, _ = draw(tmp_path / "plain", folder, from_server(server))
        changed, _ = draw(tmp_path / "changed", folder, from_server(server, **changes))
        other, _ = draw(tmp_path / "other", folder, from_server(server, seed=1))
    key = lambda row: (row.prompt_id, row.source, row.draw)  # noqa: E731
    assert sorted(plain, key=key) == sorted(changed, key=key)
    assert [row.completion_ids for row in plain] != [row.completion_ids for row in other]
    assert len({body["seed"] for body in server.requests[:48]}) == 48


def test_every_setting_that_could_change_the_distribution_is_sent(tmp_path, folder):
    """Servers have other defaults: llama.cpp's are top_k 40, top_p 0.95, min_p 0.05, llama-cpp-python's penalty 1.1."""
    with OracleServer(TABLE, "vllm") as server:
        draw(tmp_path, folder, from_server(server))
    neutral = {
        "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "repetition_penalty": 1.0, "repeat_penalty": 1.0, "typical_p": 1.0, "dry_multiplier": 0.0,
        "xtc_probability": 0.0, "dynatemp_range": 0.0, "mirostat": 0, "samplers": ["temperature"],
        "stop_token_ids": [0],
    }  # fmt: skip
    for body in server.requests:
        assert {name: body[name] for name in neutral} == neutral
        assert body["top_k"] > 10**6  # more tokens than any vocabulary has
        assert body["prompt"] in [[4], [5], [6]]
        assert 0 <= body["seed"] < 2**31


def changed_setting(name, value):
    def change(reply):
        reply["__verbose"]["generation_settings"][name] = value
        return reply

    return change


@pytest.mark.parametrize(
    "name, value",
    [("top_k", 40), ("top_p", 0.95), ("min_p", 0.05), ("temperature", 0.8), ("repeat_penalty", 1.1), ("mirostat", 2)],
)
def test_a_server_that_says_it_used_other_settings_is_refused(tmp_path, folder, name, value):
    with OracleServer(TABLE, "llama.cpp", changed_setting(name, value)) as server:
        with pytest.raises(DisaError, match=f"the server used {name} {value}, it was sent.*Fix: start the server"):
            draw(tmp_path, folder, from_server(server))


def test_float32_roundings_of_the_settings_are_not_refused(tmp_path, folder):
    sampling = SamplingConfig(max_completion_length=SPACE.length_limit, temperature=0.7)
    change = changed_setting("temperature", float(np.float32(0.7)))
    with OracleServer(TABLE, "llama.cpp", change) as server:
        rows, _ = draw(tmp_path, folder, from_server(server), sampling)
    assert len(rows) == 16 * len(ROWS)
    check_rows(rows, temperature=0.7)


@pytest.mark.parametrize("dialect", ["pieces", "text"])
def test_servers_that_report_text_leave_the_log_prob_open_where_they_do_not_say_it(tmp_path, folder, dialect):
    with OracleServer(TABLE, dialect) as server:
        rows, manifest = draw(tmp_path, folder, from_server(server, openai={"prompts": "text"}))
    assert {body["prompt"] for body in server.requests} == set(PROMPTS[:3])
    said = [row for row in rows if row.log_sampler is not None]
    # The ids are exact, since one letter is one token here, and the number of a whole completion is known only where
    # no stop token, which such servers leave out, belongs to it.
    with OracleServer(TABLE, "vllm") as server:
        exact, _ = draw(tmp_path / "exact", folder, from_server(server))
    assert [row.completion_ids for row in rows] == [row.completion_ids for row in exact]
    assert [row.truncated for row in rows] == [row.truncated for row in exact]
    if dialect == "pieces":
        assert said == [row for row in rows if row.truncated] and said
        check_rows(said)
        assert manifest["retokenised"] == 0
    else:
        assert said == [] and all(row.retokenised for row in rows)
        assert manifest["retokenised"] == len(rows)
    assert manifest["without_log_prob"] == len(rows) - len(said)


def cut(reply):
    """A reply without its last token, as of a server that leaves stop tokens out or ran out of context."""
    found = reply["choices"][0]["logprobs"]
    reply["choices"][0]["token_ids"] = reply["choices"][0]["token_ids"][:-1]
    found["token_logprobs"] = found["token_logprobs"][:-1]
    return reply


def test_a_completion_that_ends_without_a_stop_token_before_the_limit_is_refused(tmp_path, folder):
    with OracleServer(TABLE, "vllm", cut) as server:
        with pytest.raises(
            DisaError, match="a completion ended after . of 4 tokens with.*stop tokens are \\[0\\].*Fix: "
        ):
            draw(tmp_path, folder, from_server(server))


def test_finished_draws_end_at_the_first_stop_token_or_at_the_limit():
    where = {"where": "test"}
    assert finished_draw([1, 0, 2], [-1.0, -2.0, -4.0], (0,), 3, **where)[:4] == ([1, 0], False, -3.0, False)
    assert finished_draw([1, 1, 2], [-1.0, -2.0, -4.0], (0,), 3, **where)[:4] == ([1, 1, 2], True, -7.0, False)
    assert finished_draw([1, 1, 2, 0], [-1.0, -2.0, -4.0, -8.0], (0,), 3, **where)[:4] == ([1, 1, 2], True, -7.0, False)
    assert finished_draw([1, 3], [-1.0, -2.0], (0, 3), 3, **where)[:4] == ([1, 3], False, -3.0, False)
    with pytest.raises(DisaError, match="2 tokens with 1 log-probabilities"):
        finished_draw([1, 0], [-1.0], (0,), 3, **where)
    with pytest.raises(DisaError, match="ended after 0 of 3 tokens without a token"):
        finished_draw([], [], (0,), 3, **where)


def test_seeds_of_different_trajectories_differ_and_fit_into_31_bits():
    identities = [
        (s, p, source, d) for s in (0, 1) for p in "ab" for source in ("reference", "proposal") for d in (0, 1)
    ]
    seeds = [job_seed(*identity) for identity in identities]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds) and max(seeds) > 2**29


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"engine": "openai"}, "engine: openai needs openai.proposal or openai.reference"),
        ({"engine": "openai", "openai": {"proposal": "http://x"}}, "expected openai:http://HOST:PORT"),
        ({"openai": {"proposal": "openai:http://x/v1#m"}}, "openai is for engine: openai, the engine is transformers"),
        ({"vllm": {"seed": 1}}, "vllm is for engine: vllm"),
        ({"files": ["a.jsonl"]}, "files is for engine: import"),
        ({"engine": "import"}, "engine: import needs files"),
        ({"engine": "import", "files": ["a"], "adaptive": {"pilot": 4}}, "need an engine that draws"),
    ],
)
def test_settings_of_another_engine_than_the_chosen_one_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ProposalsConfig(**settings)


def test_how_fast_a_server_is_asked_is_no_part_of_the_identity():
    served = ProposalsConfig(engine="openai", openai={"proposal": "openai:http://x/v1#m", "concurrency": 3})
    assert served.identity()["openai"] == {"proposal": "openai:http://x/v1#m", "reference": None, "prompts": "tokens"}
