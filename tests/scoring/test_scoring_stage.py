"""The scoring stage: both models' log-probabilities, a checked reward, and parity with the sampler."""

import dataclasses
import json
import math

import numpy as np
import pytest

from disa.errors import DisaError
from disa.lm.sampling_config import SamplingConfig
from disa.proposals.config import ProposalsConfig
from disa.proposals.run import run_proposals
from disa.runs.folders import StageFolder
from disa.runs.records import Prompt, ScoredTrajectory, Trajectory
from disa.scoring import run as scoring
from disa.scoring.config import ScoringConfig
from disa.scoring.parity import check_parity, parity_report
from disa.scoring.run import decided_rows, run_scoring
from disa.tasks import Task
from disa.tasks.checked_rewards import checked_rewards
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
ROWS = [Prompt(p, "oracle", "train", p, "{}", None) for p in PROMPTS]
# Four token log-probabilities below 10 nats each, rounded to float32's 24 bits.
FLOAT32 = 4 * 10 * 2.0**-24


class LetterTask(Task):
    """Graded reward on the oracle's completions: the share of the letter a."""

    name = "letters"
    version = 1
    alphabet = "abc"
    # Scoring asks for nothing but rewards.
    mode = demonstration = draw = identity = text = solutions = None

    def __init__(self):
        super().__init__(config=None)

    def reward(self, prompt, completion):
        return completion.count("a") / SPACE.length_limit


class AnyReward(LetterTask):
    """Returns a value, or raises it."""

    def __init__(self, value, reward_range=(0.0, 1.0)):
        super().__init__()
        self.value, self.reward_range = value, reward_range

    def reward(self, prompt, completion):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    stage = StageFolder(tmp_path_factory.mktemp("drawn"), "2_proposals", version=1, identity={}, inputs={})
    stage.begin()
    run_proposals(stage, ProposalsConfig(per_prompt=16), LAW, ROWS, MODELS, TOKENIZER)
    return stage.rows(Trajectory)


def open_stage(folder):
    stage = StageFolder(folder, "3_scoring", version=1, identity={}, inputs={})
    stage.begin()
    return stage


def score(folder, rows, task=None, sampling=LAW, models=MODELS, **settings):
    stage = open_stage(folder)
    run_scoring(stage, ScoringConfig(**settings), sampling, task or LetterTask(), ROWS, rows, models, TOKENIZER)
    return stage.rows(ScoredTrajectory)


def test_every_trajectory_gets_both_exact_log_probs_and_its_reward_and_keeps_what_it_had(tmp_path, trajectories):
    scored = score(tmp_path, trajectories)
    assert len(scored) == len(trajectories)
    for before, after in zip(trajectories, scored, strict=True):
        assert all(getattr(after, f.name) == getattr(before, f.name) for f in dataclasses.fields(Trajectory))
        prompt, number = int(after.prompt_id), SPACE.number(after.completion_ids)
        assert after.log_ref == pytest.approx(TABLES["reference"].log_probs[prompt, number], abs=FLOAT32)
        assert after.log_proposal == pytest.approx(TABLES["proposal"].log_probs[prompt, number], abs=FLOAT32)
        assert after.reward == after.completion.count("a") / SPACE.length_limit


def test_without_a_separate_proposal_the_model_is_asked_once(tmp_path, trajectories, monkeypatch):
    calls = []
    original = scoring.sequence_log_probs
    monkeypatch.setattr(scoring, "sequence_log_probs", lambda m, *a, **k: calls.append(m) or original(m, *a, **k))
    rows = [t for t in trajectories if t.source == "reference"]
    scored = score(tmp_path, rows, models={"reference": MODELS["reference"], "proposal": MODELS["reference"]})
    assert len(calls) == 1
    assert all(row.log_ref == row.log_proposal for row in scored)


@pytest.mark.parametrize("killed_after", [0, 1, 3, 4, 6])
def test_a_kill_loses_and_doubles_no_row_and_scores_no_part_twice(tmp_path, trajectories, monkeypatch, killed_after):
    whole = score(tmp_path / "whole", trajectories, trajectories_per_part=50)
    original, blocks = scoring._log_probs, []

    def killed(*given):
        if len(blocks) == killed_after:
            raise KeyboardInterrupt
        blocks.append((given[4], len(given[5])))
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_log_probs", killed)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path / "cut", trajectories, trajectories_per_part=50)
    assert not open_stage(tmp_path / "cut").finished
    killed_after = math.inf
    monkeypatch.setattr(scoring, "_log_probs", killed)
    assert score(tmp_path / "cut", trajectories, trajectories_per_part=50) == whole
    # Every part by the reference, then every part by the proposal.
    assert blocks == [(role, n) for role in ("reference", "proposal") for n in (50, 50, 50, 10)]


def test_batch_and_part_sizes_do_not_change_the_rows(tmp_path, trajectories):
    whole = score(tmp_path / "a", trajectories)
    parts = score(tmp_path / "b", trajectories, tokens_per_batch=30, trajectories_per_part=7)
    for a, b in zip(whole, parts, strict=True):
        # Blocks of another shape may be added up in another order.
        assert (b.log_ref, b.log_proposal) == pytest.approx((a.log_ref, a.log_proposal), abs=FLOAT32)
        assert dataclasses.replace(b, log_ref=a.log_ref, log_proposal=a.log_proposal) == a


def test_a_kill_and_another_part_size_lose_and_double_no_row(tmp_path, trajectories, monkeypatch):
    """trajectories_per_part is a matter of speed: it may be changed while the stage is under way."""
    original, blocks = scoring._log_probs, iter(range(1))

    def killed(*args):
        if next(blocks, None) is None:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_log_probs", killed)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path, trajectories, trajectories_per_part=10)
    rows = score(tmp_path, trajectories, trajectories_per_part=40)
    found = sorted((r.prompt_id, r.source, r.draw) for r in rows)
    assert found == sorted((r.prompt_id, r.source, r.draw) for r in trajectories)


def test_parity_of_an_honest_sampler_is_rounding(tmp_path, trajectories):
    score(tmp_path, trajectories)
    report = json.loads((tmp_path / "3_scoring" / "parity.json").read_text())
    assert report["bound"] == scoring.PARITY_FLOAT32
    counts = {s: report[s]["trajectories"] for s in ("reference", "proposal")}
    assert counts == {"reference": 40, "proposal": 120}
    assert all(report[s]["mean"] <= report[s]["max"] <= FLOAT32 for s in counts)
    assert open_stage(tmp_path).manifest["parity"] == report


def other_weights():
    return {"reference": MODELS["proposal"], "proposal": MODELS["reference"]}


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": SamplingConfig(max_completion_length=SPACE.length_limit, temperature=0.9)},
        {"sampling": SamplingConfig(max_completion_length=SPACE.length_limit, temperature=1.1)},
        {"models": other_weights()},
    ],
    ids=["colder", "warmer", "other weights"],
)
def test_another_law_or_model_than_the_samplers_is_refused_with_the_measured_difference(tmp_path, trajectories, change):
    with pytest.raises(DisaError) as error:
        score(tmp_path, trajectories, **change)
    message = str(error.value)
    assert "sampler and scorer disagree on reference draws by" in message
    assert "nats per token" in message and "bound 0.001" in message and "scoring.parity_bound" in message
    assert "Fix: make sure both used the same weights, temperature, chat template and tokenizer" in message
    assert not open_stage(tmp_path).finished
    # The measurement stays for whoever looks for the cause.
    assert json.loads((tmp_path / "3_scoring" / "parity.json").read_text())["reference"]["mean"] > 1e-3


def test_parity_judges_each_source_alone_and_divides_by_tokens():
    def row(source, log_sampler, log_ref, log_proposal, tokens):
        return ScoredTrajectory("p", 0, source, "", [1] * tokens, False, log_sampler, log_ref, log_proposal, 0.0)

    rows = [row("reference", -4.0, -4.2, -9.0, 2), row("reference", -4.0, -4.0, -9.0, 2)]
    rows += [row("proposal", -3.0, -9.0, -3.0, 3)]
    report = parity_report(rows, 0.06)
    # |-4.2 + 4| / 2 tokens, and 0, have the mean 0.05: differences of numbers near 4, exact to a few units of 1e-16.
    assert report["reference"] == {
        "mean": pytest.approx(0.05, abs=1e-14),
        "max": pytest.approx(0.1, abs=1e-14),
        "trajectories": 2,
    }
    assert report["proposal"] == {"mean": 0.0, "max": 0.0, "trajectories": 1}
    check_parity(report)
    with pytest.raises(DisaError, match="disagree on reference draws by 0.05 .*largest 0.1.*bound 0.049"):
        check_parity(parity_report(rows, 0.049))
    with pytest.raises(DisaError, match="disagree on proposal draws"):
        check_parity(parity_report([row("proposal", -3.0, -3.0, -4.0, 1)], 0.5))


def test_a_log_prob_that_is_not_a_number_is_no_agreement():
    row = ScoredTrajectory("p", 0, "reference", "", [1], False, -math.inf, -math.inf, 0.0, 0.0)
    with np.errstate(invalid="ignore"):
        report = parity_report([row], 1e9)
    with pytest.raises(DisaError, match="disagree on reference draws by nan"):
        check_parity(report)


@pytest.mark.parametrize(
    "value, problem",
    [
        (float("nan"), "the reward is nan"),
        (float("inf"), "the reward is inf"),
        (-0.5, "the reward is -0.5"),
        (1.5, "the reward is 1.5"),
        (np.float32(2.0), "the reward is 2.0"),
        ("1", "the reward is 1"),
        ([1.0], "the reward is \\[1.0\\]"),
    ],
    ids=str,
)
def test_an_unusable_reward_is_refused_naming_task_prompt_range_and_completion(tmp_path, trajectories, value, problem):
    with pytest.raises(DisaError, match=problem) as error:
        score(tmp_path, trajectories, task=AnyReward(value))
    first = trajectories[0]
    assert f"task letters, prompt {first.prompt_id}, field reward" in str(error.value)
    assert f"Fix: return a number in [0.0, 1.0] for every completion (here {first.completion!r})" in str(error.value)
    assert not open_stage(tmp_path).finished


@pytest.mark.parametrize("value", [0, 1, True, -1.0, 0.25, np.float64(1.0), np.int64(-1)])
def test_rewards_at_the_ends_and_inside_of_the_declared_range_are_plain_floats(value):
    (found,) = checked_rewards(AnyReward(value, (-1.0, 1.0)), ROWS[:1], ["a"])
    assert found == value and type(found) is float


def test_a_tasks_own_disa_error_is_passed_on_as_it_is():
    with pytest.raises(DisaError, match="^prompt 0: damaged. Fix: repair$"):
        checked_rewards(AnyReward(DisaError("damaged", where="prompt 0", fix="repair")), ROWS[:1], ["a"])


def test_a_reward_that_raises_is_refused_naming_task_and_error():
    with pytest.raises(DisaError, match="^task letters, prompt 0, field reward: the reward raised ZeroDivisionError"):
        checked_rewards(AnyReward(ZeroDivisionError("no")), ROWS[:1], ["a"])


def test_undecided_completions_are_kept_as_null_and_counted(tmp_path, trajectories):
    class Hesitant(LetterTask):
        def rewards(self, prompts, completions):
            return [None if i % 3 == 0 else 1.0 for i in range(len(completions))]

    score(tmp_path, trajectories, task=Hesitant())
    stage = open_stage(tmp_path)
    rows = stage.rows(ScoredTrajectory)
    assert len(rows) == len(trajectories)
    undecided = [row for row in rows if row.reward is None]
    assert undecided and decided_rows(rows) == [row for row in rows if row.reward == 1.0]
    assert json.loads((tmp_path / "3_scoring" / "manifest.json").read_text())["undecided"] == len(undecided)


def test_a_task_that_forgets_a_completion_is_refused():
    class Forgetful(LetterTask):
        def rewards(self, prompts, completions):
            return [1.0]

    with pytest.raises(DisaError, match="1 rewards for 2 completions"):
        checked_rewards(Forgetful(), ROWS[:2], ["a", "b"])


def test_a_model_that_cannot_share_prompts_is_named_in_the_log_and_in_the_manifest(tmp_path, trajectories, caplog):
    score(tmp_path, trajectories)
    reasons = open_stage(tmp_path).manifest["prompts_not_shared"]
    assert set(reasons) == {"reference", "proposal"}
    assert all(reason.startswith("architecture disa_oracle is not one of") for reason in reasons.values())
    for source, reason in reasons.items():
        assert f"{source} computes prompts once per completion, not once per prompt: {reason}" in caplog.text


def test_a_model_that_shares_prompts_is_not_named(finished_run):
    manifest = json.loads((finished_run / "3_scoring" / "manifest.json").read_text())
    assert manifest["prompts_not_shared"] == {}
