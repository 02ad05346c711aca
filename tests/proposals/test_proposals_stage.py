"""Offline trajectories: the stated mixture, each determined by its own identity, none lost or doubled."""

import collections
import dataclasses

import numpy as np
import pytest
from scipy.stats import chisquare

from disa.errors import DisaError
from disa.lm.sampler import uniforms
from disa.lm.sampling_config import SamplingConfig
from disa.proposals import run as proposals
from disa.proposals.config import ProposalsConfig
from disa.proposals.run import run_proposals
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, Trajectory
from disa.testing import Space, random_model
from disa.testing.hf import PROMPTS, oracle_tokenizer, to_causal_lm

SPACE = Space(vocabulary=4, length_limit=4)
TABLES = {
    "reference": random_model(SPACE, len(PROMPTS), np.random.default_rng(0)),
    "proposal": random_model(SPACE, len(PROMPTS), np.random.default_rng(1)),
}
MODELS = {name: to_causal_lm(table) for name, table in TABLES.items()}
TOKENIZER = oracle_tokenizer(SPACE)
LAW = SamplingConfig(max_completion_length=SPACE.length_limit)
# Prompt text and id are the same digit; the last two are held out.
ROWS = [Prompt(p, "oracle", "heldout" if p in "89" else "train", p, "{}", None) for p in PROMPTS]
# Four token log-probabilities below 10 nats each, rounded to float32's 24 bits.
FLOAT32 = 4 * 10 * 2.0**-24
DEFAULT = {"per_prompt": 16, "per_heldout_prompt": 8, "prompts_per_part": 4, "batch_size": 32}


def open_stage(folder):
    stage = StageFolder(folder, "2_proposals", version=1, identity={}, inputs={})
    stage.begin()
    return stage


def draw(folder, rows=ROWS, sampling=LAW, models=MODELS, **changes):
    stage = open_stage(folder)
    run_proposals(stage, ProposalsConfig(**DEFAULT | changes), sampling, rows, models, TOKENIZER)
    return stage.rows(Trajectory)


def key(row):
    return row.prompt_id, row.source, row.draw


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("proposals"))


@pytest.mark.parametrize(
    "share, train, heldout",
    [(0.25, (4, 12), (2, 6)), (0.0, (0, 16), (0, 8)), (1.0, (16, 0), (8, 0)), (0.3, (5, 11), (2, 6))],
)
def test_every_prompt_gets_its_share_of_each_source_numbered_from_zero(tmp_path, share, train, heldout):
    rows = draw(tmp_path, reference_share=share)
    for prompt in ROWS:
        expected = train if prompt.split == "train" else heldout
        for source, count in zip(("reference", "proposal"), expected, strict=True):
            draws = [r.draw for r in rows if (r.prompt_id, r.source) == (prompt.prompt_id, source)]
            assert sorted(draws) == list(range(count))
    assert len(rows) == 8 * 16 + 2 * 8


def test_heldout_prompts_may_get_none(tmp_path):
    rows = draw(tmp_path, per_heldout_prompt=0)
    assert {r.prompt_id for r in rows} == {p.prompt_id for p in ROWS if p.split == "train"}


def test_token_ids_text_and_truncation_agree_and_the_log_prob_is_the_source_models(drawn):
    for row in drawn:
        number = SPACE.number(row.completion_ids)  # raises where the ids are no completion
        assert row.truncated == bool(SPACE.truncated[number])
        assert row.completion == "".join(" abc"[t] for t in row.completion_ids if t)
        exact = TABLES[row.source].log_probs[int(row.prompt_id), number]
        assert row.log_sampler == pytest.approx(exact, abs=FLOAT32)
    assert {r.truncated for r in drawn} == {True, False}


def test_the_manifest_counts_what_is_there(tmp_path):
    rows = draw(tmp_path)
    manifest = open_stage(tmp_path).manifest
    assert (manifest["trajectories"], manifest["prompts"]) == (len(rows), len(ROWS))


@pytest.mark.parametrize(
    "changes", [{}, {"batch_size": 1}, {"batch_size": 7}, {"prompts_per_part": 1}, {"prompts_per_part": 64}], ids=str
)
def test_trajectories_are_the_same_at_any_batch_and_part_size_and_in_a_rerun(tmp_path, drawn, changes):
    again = {key(r): r for r in draw(tmp_path, **changes)}
    assert again.keys() == {key(r) for r in drawn}
    for row in drawn:
        other = again[key(row)]
        # Batches of another shape may be added up in another order: equal up to float32 rounding.
        assert other.log_sampler == pytest.approx(row.log_sampler, abs=FLOAT32)
        assert dataclasses.replace(other, log_sampler=row.log_sampler) == row


def test_trajectories_do_not_depend_on_the_other_prompts_or_on_how_many_are_drawn(tmp_path, drawn):
    alone = draw(tmp_path / "alone", rows=ROWS[3:4])
    assert {key(r): r.completion_ids for r in alone} == {
        key(r): r.completion_ids for r in drawn if r.prompt_id == ROWS[3].prompt_id
    }
    more = {key(r): r.completion_ids for r in draw(tmp_path / "more", per_prompt=32)}
    assert all(more[key(r)] == r.completion_ids for r in drawn if r.prompt_id not in "89")


def test_another_seed_source_prompt_or_draw_has_other_random_numbers(tmp_path, drawn):
    assert len({tuple(uniforms(*k, 8)) for k in [(0, "a", "reference", 0), (1, "a", "reference", 0)]}) == 2
    identities = [(seed, p, s, d) for seed in (0, 1) for p in "ab" for s in ("reference", "proposal") for d in (0, 1)]
    assert len({tuple(uniforms(*identity, 8)) for identity in identities}) == len(identities)
    # A longer limit continues the same numbers.
    assert uniforms(0, "a", "reference", 0, 4).tolist() == uniforms(0, "a", "reference", 0, 8)[:4].tolist()
    other = draw(tmp_path, seed=1)
    assert [r.completion_ids for r in other] != [r.completion_ids for r in drawn]


@pytest.mark.parametrize("killed_after", [0, 1, 2, 5])
def test_a_kill_loses_and_doubles_no_row(tmp_path, drawn, monkeypatch, killed_after):
    batches = 0

    def killed(*args, **kwargs):
        nonlocal batches
        batches += 1
        if batches > killed_after:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    sample = proposals.draw_rows
    with monkeypatch.context() as patch:
        patch.setattr(proposals, "draw_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path)
    stage = open_stage(tmp_path)
    assert not stage.finished
    done = {p.name: p.stat().st_mtime_ns for p in stage.path.glob("*.parquet")}
    rows = draw(tmp_path)
    assert rows == drawn
    assert max(collections.Counter(map(key, rows)).values()) == 1
    assert {p.name: p.stat().st_mtime_ns for p in stage.path.glob("*.parquet")}.items() >= done.items()


def test_a_kill_and_another_part_size_lose_and_double_no_row(tmp_path, drawn, monkeypatch):
    """prompts_per_part is a matter of speed: it may be changed while the stage is under way."""
    sample, batches = proposals.draw_rows, iter(range(3))

    def killed(*args, **kwargs):
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(proposals, "draw_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path, prompts_per_part=2)
    rows = draw(tmp_path, prompts_per_part=4)
    assert collections.Counter(map(key, rows)) == collections.Counter(map(key, drawn))


@pytest.mark.parametrize("source", ["reference", "proposal"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_of_each_source_have_the_exact_frequencies_of_its_table(tmp_path, source, temperature):
    n, prompt = 4000, ROWS[2]
    share = 1.0 if source == "reference" else 0.0
    sampling = SamplingConfig(max_completion_length=SPACE.length_limit, temperature=temperature)
    rows = draw(tmp_path, rows=[prompt], sampling=sampling, per_prompt=n, reference_share=share, batch_size=n)
    table = dataclasses.replace(TABLES[source], logits=TABLES[source].logits / temperature)
    numbers = [SPACE.number(r.completion_ids) for r in rows]
    expected = n * np.exp(table.log_probs[int(prompt.prompt_id)])
    common = expected >= 5  # the usual smallest cell of a chi-square test; rarer ones share a cell
    counts = np.bincount(numbers, minlength=SPACE.completions)
    observed = np.append(counts[common], counts[~common].sum())
    # Four tests at a fixed seed: an honest sampler fails one of them for one seed in 2,500.
    assert chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > 1e-4
    found = [r.log_sampler for r in rows]
    # Temperature 0.7 stretches the log-probabilities by 1 / 0.7 and their rounding with them.
    exact = table.log_probs[int(prompt.prompt_id)][numbers]
    np.testing.assert_allclose(found, exact, rtol=0, atol=FLOAT32 / temperature)


def test_a_prompt_that_does_not_fit_the_models_context_is_named(tmp_path):
    models = {name: to_causal_lm(table) for name, table in TABLES.items()}
    for model in models.values():
        model.config.max_position_embeddings = SPACE.length_limit
    with pytest.raises(DisaError, match="prompt 0: prompt of 1 tokens plus sampling.max_completion_length 4 exceeds"):
        draw(tmp_path, models=models)


def test_a_prompt_with_an_unknown_character_is_refused(tmp_path):
    with pytest.raises(DisaError, match="'\\?' has a character the tokenizer does not know.*Fix: "):
        draw(tmp_path, rows=[Prompt("x", "oracle", "train", "?", "{}", None)])
