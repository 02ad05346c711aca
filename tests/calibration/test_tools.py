"""Tools and environments: log Z, the trajectories' log-probabilities and the target, against a list of all of them."""

import dataclasses
import json

import pytest
import tool_toy as toy
from transformers import LlamaConfig, LlamaForCausalLM

import disa
from disa.errors import DisaError
from disa.lm.hf_trainer import trainer_arguments
from disa.proposals.tool_answers import varied_answers
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt
from disa.testing.hf import oracle_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:You are using '(rollout_func|environment_factory)'")  # TRL's


def rollout(prompts, trainer):
    """The tool's loop, by hand: one call at most, and none where the answer fills the completion."""
    prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
    ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, 1)
    said = [trainer._tokenizer.parse_response(row) for row in ids]
    called = [i for i, message in enumerate(said) if message.get("tool_calls")]
    mask, answers = [[1] * len(row) for row in ids], {}
    for i in called:
        answers[i] = toy.ask(said[i]["tool_calls"][0]["function"]["arguments"]["letter"])
        ids[i], mask[i] = ids[i] + trainer._tokenizer.convert_tokens_to_ids([answers[i]]), mask[i] + [0]
    if called:
        more, _ = trainer._generate_single_turn([prompt_ids[i] + ids[i] for i in called], None, {}, 1)
        for i, row in zip(called, more, strict=True):
            row = row[: toy.LIMIT - len(ids[i])]
            ids[i], mask[i] = ids[i] + row, mask[i] + [1] * len(row)
    digits = [answers.get(i, p[-1]["content"]) for i, p in enumerate(prompts)]
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None, "env_mask": mask, "digit": digits}


def reward_of_ids(completion_ids, digit, **_):
    """The same reward, of what a rollout function hands on."""
    keys = [toy.read(ids) for ids in completion_ids]
    return [toy.value(d, more if answer else text) for d, (text, answer, more) in zip(digit, keys, strict=True)]


class Scored(toy.Oracle):
    """An environment that judges: it knows which answer it gave."""

    def reset(self, prompt, **row):
        super().reset(prompt)
        self.said = None

    def ask(self, letter: str) -> str:
        """Ask for a digit.

        Args:
            letter: What is asked.
        """
        answer = super().ask(letter)
        self.said = self.said or answer  # a call whose answer finds no room any more is made all the same
        return answer

    def get_reward(self) -> float:
        return 0.0 if self.said is None else int(self.said) / 9


ENVIRONMENTS = {
    "tool": {"tools": [toy.ask]},
    "oracle": {"environment_factory": toy.Oracle},
    "dice": {"environment_factory": toy.Dice},
    "rollout": {"rollout_func": rollout},
}
REWARDS = {"rollout": reward_of_ids}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "reference"
    return folder, toy.save(folder)


@pytest.fixture(scope="module")
def exact(table):
    return {name: toy.Exact(table[1], name) for name in ENVIRONMENTS}


def calibrated(folder, reference, name, reward=None, **changed):
    own = {"inverse_temperature": toy.BETA, "num_generations": 200, "max_completion_length": toy.LIMIT}
    args = disa.CalibrationConfig(str(folder), **own | changed)
    reward = reward or REWARDS.get(name, toy.reward)
    return disa.calibrate(
        str(reference), reward, toy.rows(), args, processing_class=toy.tokenizer(), **ENVIRONMENTS.get(name, {})
    )


@pytest.fixture(scope="module")
def anchors(table, tmp_path_factory):
    made = {}

    def anchor(name):
        if name not in made:
            made[name] = calibrated(tmp_path_factory.mktemp(name), table[0], name)
        return made[name]

    return anchor


def digits(anchor):
    """The user's digit by prompt id."""
    found = read_rows(anchor.path.parent / "1_tasks" / "train.parquet", Prompt)
    return {p.prompt_id: json.loads(p.prompt)[0]["content"] for p in found}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_log_probabilities_are_of_the_models_own_tokens_and_log_z_is_the_sum_over_all_trajectories(
    name, anchors, exact
):
    anchor = anchors(name)
    digit, rows = digits(anchor), anchor.trajectories()
    assert len(rows) == 5 * 200
    assert 0.15 < sum(0 in row.tool_mask for row in rows) / len(rows) < 0.45
    for row in rows:
        own, _, reward = exact[name].rows[digit[row.prompt_id]][toy.read(row.completion_ids)]
        # Five float32 logarithms; the answer's own, left in, would be off by 30.
        assert row.log_ref == pytest.approx(own, abs=1e-5)
        assert row.reward == pytest.approx(reward, abs=1e-6)
        assert row.own_length == len(row.completion_ids) - (0 in row.tool_mask)
    # Plain Monte Carlo of 200 draws: exp(beta r) has a standard deviation near its mean, so log Z's is near .07; the
    # mean error of five prompts is held to three of its own standard errors.
    errors = [row.log_z - exact[name].log_z[digit[key]] for key, row in anchor.estimates.items()]
    assert abs(sum(errors) / len(errors)) < 3 * 0.07 / 5**0.5


def trained(folder, reference, anchor, name, reward=None, **changed):
    own = trainer_arguments(False, 20) | {
        "max_steps": 120,
        "num_generations": 48,
        "per_device_train_batch_size": 240,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.1,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1e6,
        "weight_decay": 0.0,
        "save_strategy": "no",
    }
    return disa.DISATrainer(
        model=str(reference),
        reward_funcs=reward or REWARDS.get(name, toy.reward),
        anchor=anchor,
        args=disa.DISAConfig(str(folder), **own | changed),
        train_dataset=toy.rows(),
        processing_class=toy.tokenizer(),
        **ENVIRONMENTS.get(name, {}),
    )


def with_exact_log_z(anchor, exact):
    digit = digits(anchor)
    estimates = {key: dataclasses.replace(row, log_z=exact.log_z[digit[key]]) for key, row in anchor.estimates.items()}
    return dataclasses.replace(anchor, estimates=estimates)


@pytest.mark.parametrize("name", ["oracle", "dice"])
def test_training_reaches_the_target_and_with_a_random_environment_what_can_be_reached(
    name, table, anchors, exact, tmp_path
):
    exact, anchor = exact[name], with_exact_log_z(anchors(name), exact[name])
    trainer = trained(tmp_path, table[0], anchor, name)
    least = [exact.irreducible(p) for p in toy.PROMPTS]
    assert min(exact.kl(table[1], p) - rest for p, rest in zip(toy.PROMPTS, least, strict=True)) > 0.15
    trainer.train()
    above = [exact.kl(toy.table_of(trainer.model), p) - rest for p, rest in zip(toy.PROMPTS, least, strict=True)]
    # No policy is below it, but for rounding. This leaves about .001 and .005.
    assert min(above) > -1e-6
    assert sum(above) / 5 < 0.01
    if name == "oracle":
        assert max(map(abs, least)) < 1e-9
    else:
        assert min(least) > 0.04
        last = [line["kl_to_target"] for line in trainer.state.log_history if "residual/rms" in line][-2]
        # The log shows it: 20 steps of 240 completions with a spread of .6 have a standard error of .01.
        assert last == pytest.approx(sum(least) / 5 + sum(above) / 5, abs=0.04)


def test_a_calibration_draws_the_same_again_random_tools_included(table, anchors, tmp_path):
    again = calibrated(tmp_path, table[0], "dice")
    assert again.trajectories() == anchors("dice").trajectories()
    assert len({t.log_ref for t in again.trajectories()}) > 100


def test_a_random_environment_is_noticed(anchors):
    varied, places = varied_answers(anchors("dice").trajectories())
    assert varied == places == 10  # five prompts, two calls, each made more than twice
    assert varied_answers(anchors("oracle").trajectories()) == (0, 10)


def test_the_environments_own_reward_is_the_trainers_too(table, tmp_path):
    args = disa.CalibrationConfig(
        str(tmp_path / "anchor"), inverse_temperature=2.0, num_generations=20, max_completion_length=toy.LIMIT
    )
    own = {"processing_class": toy.tokenizer(), "environment_factory": Scored}
    anchor = disa.calibrate(str(table[0]), None, toy.rows(), args, **own)
    for row in anchor.trajectories():
        answer = toy.read(row.completion_ids)[1]
        assert row.reward == pytest.approx(int(answer) / 9 if answer else 0.0, abs=1e-6)
    assert anchor.fingerprint.reward == "Scored.get_reward"
    config = disa.DISAConfig(str(tmp_path), **toy.SMALL)
    trainer = disa.DISATrainer(str(table[0]), None, anchor, config, toy.rows(), **own)
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_forward_projection_learns_the_models_own_tokens(table, anchors, tmp_path):
    anchor = anchors("oracle")
    trainer = trained(tmp_path, table[0], anchor, "oracle", offline_share=0.5, **toy.SMALL)
    batch = trainer._offline.batch(0, 40, "cpu", 13)
    log_pi, _ = trainer.sequence_log_probs(trainer.model, vars(batch))
    assert 5 < int((batch.completion_mask - batch.tool_mask).sum()) < 40
    # The policy is the reference still; float32.
    assert log_pi.tolist() == pytest.approx(batch.log_ref.tolist(), abs=1e-5)
    trainer.train()
    assert "forward_projection" in trainer.state.log_history[0]


def test_offline_training_sums_the_models_own_tokens(table, anchors):
    trajectories = disa.offline_trajectories(anchors("tool"), toy.rows(), toy.tokenizer())
    args = {"output_dir": "unused", "max_steps": 1, "report_to": "none", "use_cpu": True}
    trainer = disa.OfflineTrainer(table[0], disa.OfflineConfig(**args), trajectories, processing_class=toy.tokenizer())
    batch = trajectories.batch(0, 30, "cpu", 13)
    log_pi = trainer.sequence_log_probs(trainer.model, batch)
    assert log_pi.tolist() == pytest.approx(batch.log_ref.tolist(), abs=1e-5)
    assert batch.tokens[0] == batch.tool_mask.sum() < batch.completion_mask.sum()
    for changed, message in (
        ({"temperature": 0.5}, "temperature is 0.5, the trajectories were drawn at 1.0"),
        ({"max_steps": -1}, "max_steps is not set"),
    ):
        with pytest.raises(DisaError, match=message):
            given = disa.OfflineConfig(**args | changed)
            disa.OfflineTrainer(table[0], given, trajectories, processing_class=toy.tokenizer())
    with pytest.raises(DisaError, match="no log Z for prompt"):
        stray = [{"prompt": [{"role": "user", "content": "7"}]}]
        disa.offline_trajectories(anchors("tool"), stray, toy.tokenizer())


def other(letter: str) -> str:
    """Ask for a digit.

    Args:
        letter: What is asked.
    """
    return "7"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "tools is none, the anchor was estimated for ask:"),
        ({"tools": [other]}, "tools is other:.*, the anchor was estimated for ask:"),
        ({"tools": [toy.ask, other]}, "tools is ask\\+other:"),
    ],
)
def test_other_tools_than_the_anchors_are_refused(given, message, table, anchors, tmp_path):
    anchor = anchors("tool")
    with pytest.raises(DisaError, match=message):
        disa.DISATrainer(
            str(table[0]),
            toy.reward,
            anchor,
            disa.DISAConfig(str(tmp_path), **toy.SMALL),
            toy.rows(),
            processing_class=toy.tokenizer(),
            **given,
        )


def test_another_limit_on_rounds_is_refused(table, anchors, tmp_path):
    with pytest.raises(DisaError, match="at most 1 rounds"):
        trained(tmp_path, table[0], anchors("tool"), "tool", max_tool_calling_iterations=1, **toy.SMALL)


class Moody(toy.Oracle):
    """Says something else at every start."""

    starts = 0

    def reset(self, **row):
        Moody.starts += 1
        return str(Moody.starts % 10)


@pytest.mark.parametrize(
    ("given", "changed", "rows", "message"),
    [
        ({"tools": [toy.ask]}, {}, [{"prompt": "1"}], "prompts are texts, and tools need messages"),
        ({"environment_factory": Moody}, {}, None, "drawn from a rendered prompt of"),
        ({"tools": [toy.ask]}, {"use_vllm": True}, None, "use_vllm and tools.* not supported together yet"),
        ({"tools": [toy.ask]}, {"reward_range": [0, 0.1]}, None, "a reward is .*, expected a number in .0, 0.1."),
        ({"tools": [len]}, {}, None, "what tool len computes cannot be told .*attribute fingerprint"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(given, changed, rows, message, table, tmp_path):
    args = disa.CalibrationConfig(str(tmp_path), **{"num_generations": 4, "max_completion_length": 5} | changed)
    with pytest.raises(DisaError, match=message):
        disa.calibrate(str(table[0]), toy.reward, rows or toy.rows(), args, processing_class=toy.tokenizer(), **given)


def test_a_launch_of_several_processes_is_refused_with_the_way_to_share_the_work(table, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DisaError, match="2 processes of one launch.*waits at every batch.*without a launcher"):
        calibrated(tmp_path, table[0], "tool")


def test_without_a_reward_that_counts_it_says_so(table, tmp_path):
    args = disa.CalibrationConfig(str(tmp_path), max_completion_length=5)
    with pytest.raises(DisaError, match="no reward function counts"):
        disa.calibrate(str(table[0]), None, toy.rows(), args, processing_class=toy.tokenizer(), tools=[toy.ask])


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 10}])
def test_what_the_policy_thinks_of_the_tools_words_is_in_no_number(changes, table, anchors, tmp_path):
    lines = []
    for shift in (0.0, 5.0):
        policy = toy.Toy.from_pretrained(table[0])
        policy.lm_head.bias[3:] += shift  # digits: e^-30 becomes e^-25, next to nothing still
        args = disa.DISAConfig(str(tmp_path), **toy.SMALL | {"logging_steps": 1, "learning_rate": 0.1} | changes)
        trainer = disa.DISATrainer(
            policy,
            toy.reward,
            anchors("oracle"),
            args,
            toy.rows(),
            reference=table[0],
            processing_class=toy.tokenizer(),
            environment_factory=toy.Oracle,
        )
        trainer.train()
        lines.append([{k: v for k, v in line.items() if "time" not in k} for line in trainer.state.log_history[:2]])
    assert all(line["tools/call_frequency"] > 0 for line in lines[0])
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_prompts_computed_once_for_all_completions_leave_the_tools_words_out_too(tmp_path):
    letters = toy.tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(letters), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=0, pad_token_id=13,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    oracle_tokenizer(toy.SPACE).save_pretrained(tmp_path / "model")

    def said(completions, **_):
        return [float(any(m["role"] == "tool" for m in c)) for c in completions]

    given = {"model": str(tmp_path / "model"), "reward_funcs": said, "train_dataset": toy.rows()}
    given |= {"processing_class": letters, "tools": [toy.ask]}
    args = disa.CalibrationConfig(str(tmp_path / "anchor"), num_generations=300, max_completion_length=12)
    anchor = disa.calibrate(**given, args=args)
    called = [row for row in anchor.trajectories() if 0 in row.tool_mask]
    assert len(called) > 5 and {row.reward for row in anchor.trajectories()} == {0.0, 1.0}
    # Sampler and scorer are two programs: one goes token by token through the calls, one takes each completion whole.
    assert max(abs(row.log_sampler - row.log_ref) for row in called) < 1e-4
    trainer = disa.DISATrainer(**given, anchor=anchor, args=disa.DISAConfig(str(tmp_path / "policy"), **toy.SMALL))
    assert trainer.prompts_not_shared is None
    trainer.train()  # the guard compares log pi_ref of the anchor's own trajectories with the trainer's
    assert trainer.state.global_step == 2
