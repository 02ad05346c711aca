"""Several environments in one data set, and environments that make the prompts, against a list of all trajectories."""

import json

import pytest
import tool_toy as toy
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

import disa
from disa.errors import DisaError
from disa.runs.parquet_rows import read_rows
from disa.runs.records import Prompt, ScoredTrajectory
from disa.testing.hf import oracle_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")  # TRL's


class Plain:
    """Answers as the tool of the toy does."""

    def reset(self, **row):
        self.said = None

    def ask(self, letter: str) -> str:
        """Ask for a digit.

        Args:
            letter: What is asked.
        """
        self.said = self.said or toy.ask(letter)
        return toy.ask(letter)


class Ninth(Plain):
    """Judges itself, by its answer."""

    def get_reward(self) -> float:
        return 0.0 if self.said is None else int(self.said) / 9


class Tenth(Plain):
    """Judges itself in another way."""

    def get_reward(self) -> float | None:
        return None if self.said == "6" else 0.5 if self.said is None else int(self.said) / 10


class Speaks(toy.Oracle):
    """Makes the prompt of a column."""

    def reset(self, digit, **row):
        self.digit = int(digit)
        return digit


class Curt(toy.Oracle):
    def reset(self, prompt):
        pass


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "reference"
    return folder, toy.save(folder)


def calibrated(folder, table, rows, reward=toy.reward, draws=100, **environments):
    args = disa.CalibrationConfig(
        str(folder), inverse_temperature=toy.BETA, num_generations=draws, max_completion_length=toy.LIMIT
    )
    return disa.calibrate(str(table[0]), reward, rows, args, processing_class=toy.tokenizer(), **environments)


def trained(folder, table, anchor, rows, reward=toy.reward, **environments):
    changed = environments.pop("changed", {})
    args = disa.DISAConfig(str(folder), **toy.SMALL | changed)
    own = {"processing_class": toy.tokenizer()} | environments
    trainer = disa.DISATrainer(str(table[0]), reward, anchor, args, rows, **own)
    trainer.train()
    return trainer


def stored_prompts(anchor):
    return {p.prompt_id: p for p in read_rows(anchor.path.parent / "1_tasks" / "train.parquet", Prompt)}


def check_against_the_list(anchor, exact):
    """Log-probabilities and rewards are the list's, and the mean error of log Z is noise; ``exact`` is by prompt id."""
    for row in anchor.trajectories():
        digit, listed = exact[row.prompt_id]
        own, _, reward = listed.rows[digit][toy.read(row.completion_ids)]
        assert row.log_ref == pytest.approx(own, abs=1e-5)  # five float32 logarithms
        assert row.reward == pytest.approx(reward, abs=1e-6)
    # exp(beta r) has a standard deviation near its mean: log Z of 100 draws is off by .1; three standard errors.
    errors = [row.log_z - exact[key][1].log_z[exact[key][0]] for key, row in anchor.estimates.items()]
    assert abs(sum(errors) / len(errors)) < 3 * 0.1 / len(errors) ** 0.5


def test_every_row_meets_its_own_environment(table, tmp_path):
    rows = [row | {"environment": name} for name in ("plain", "oracle") for row in toy.rows()]
    environments = {"environment_factory": {"plain": Plain, "oracle": toy.Oracle}}
    anchor = calibrated(tmp_path / "anchor", table, rows, **environments)
    lists = {"plain": toy.Exact(table[1], "tool"), "oracle": toy.Exact(table[1], "oracle")}
    found = {
        key: (json.loads(p.prompt)["messages"][0]["content"], json.loads(p.payload)["environment"])
        for key, p in stored_prompts(anchor).items()
    }
    assert len(found) == 10
    check_against_the_list(anchor, {key: (digit, lists[name]) for key, (digit, name) in found.items()})
    trainer = trained(tmp_path / "policy", table, anchor, rows, **environments, changed={"offline_share": 0.5})
    assert "forward_projection" in trainer.state.log_history[0]
    turned = {"environment_factory": dict(reversed(environments["environment_factory"].items()))}
    assert trained(tmp_path / "again", table, anchor, rows, **turned).state.global_step == 2
    renamed = {"environment_factory": {"plain": toy.Oracle, "oracle": Plain}}
    with pytest.raises(DisaError, match="tools is Plain\\+Oracle:.*, the anchor was estimated for Oracle\\+Plain:"):
        trained(tmp_path / "renamed", table, anchor, rows, **renamed)


def test_an_environments_own_reward_has_no_say_in_another(table, tmp_path):
    rows = [row | {"environment": name} for name in ("ninth", "tenth") for row in toy.rows()]
    environments = {"environment_factory": {"tenth": Tenth, "ninth": Ninth}}
    anchor = calibrated(tmp_path / "anchor", table, rows, None, **environments)
    payloads = {key: p.payload for key, p in stored_prompts(anchor).items()}
    undecided = 0
    scored = anchor.path.parent / "3_scoring"
    for row in (row for path in scored.glob("*.parquet") for row in read_rows(path, ScoredTrajectory)):
        answer = toy.read(row.completion_ids)[1]
        if "ninth" in payloads[row.prompt_id]:
            assert row.reward == pytest.approx(int(answer) / 9 if answer else 0.0, abs=1e-6)
        elif answer == "6":
            assert row.reward is None
            undecided += 1
        else:
            assert row.reward == pytest.approx(int(answer) / 10 if answer else 0.5, abs=1e-6)
    assert undecided
    assert anchor.fingerprint.reward == "Ninth.get_reward+Tenth.get_reward"
    assert trained(tmp_path / "policy", table, anchor, rows, None, **environments).state.global_step == 2


def test_prompts_may_be_made_by_reset_alone(table, tmp_path):
    rows = [{"digit": digit} for digit in toy.PROMPTS]
    environments = {"environment_factory": Speaks}
    anchor = calibrated(tmp_path / "anchor", table, rows, **environments)
    exact = toy.Exact(table[1], "oracle")
    digits = {key: p.payload[-3] for key, p in stored_prompts(anchor).items()}
    assert sorted(digits.values()) == list(toy.PROMPTS)
    check_against_the_list(anchor, {key: (digit, exact) for key, digit in digits.items()})
    for given in (rows, Dataset.from_list(rows)):
        trainer = trained(tmp_path / "p", table, anchor, given, **environments, changed={"offline_share": 0.5})
        assert trainer.state.global_step == 2
    with pytest.raises(DisaError, match="train_dataset is NoneType.*what it makes them from, such as a seed"):
        trained(tmp_path / "p", table, anchor, None, **environments)
    stored = disa.offline_trajectories(anchor, rows, toy.tokenizer(), environment_factory=Speaks)
    assert len(stored.prompts) == 5


class Two(Plain):
    """An environment with another tool beside."""

    def tell(self, letter: str) -> str:
        """Tell a letter.

        Args:
            letter: What is told.
        """
        return "9"


def test_a_prompt_shows_the_tools_of_its_own_environment_alone(tmp_path):
    letters = toy.tokenizer()
    letters.chat_template = "{{ tools | length if tools else 0 }}" + toy.TEMPLATE
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=0, pad_token_id=13,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    oracle_tokenizer(toy.SPACE).save_pretrained(tmp_path / "model")
    rows = [row | {"environment": name} for name in ("one", "two") for row in toy.rows()]
    given = {"environment_factory": {"one": Plain, "two": Two}, "processing_class": letters}
    args = disa.CalibrationConfig(str(tmp_path / "anchor"), num_generations=8, max_completion_length=6)

    def length(completion_ids, **_):
        return [len(ids) / 6 for ids in completion_ids]

    anchor = disa.calibrate(str(tmp_path / "model"), length, rows, args, **given)
    trainer = disa.DISATrainer(
        str(tmp_path / "model"), length, anchor, disa.DISAConfig(str(tmp_path / "p"), **toy.SMALL), rows, **given
    )
    asked = []
    generate = trainer._generate_and_score_completions

    def watched(inputs):
        batch = generate(inputs)
        shown = letters.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
        asked.extend(zip([row["environment"] for row in inputs], [text[0] for text in shown], strict=True))
        return batch

    trainer._generate_and_score_completions = watched
    trainer.train()
    assert set(asked) == {("one", "1"), ("two", "2")}


@pytest.mark.parametrize(
    ("environments", "rows", "reward", "message"),
    [
        ({"a": Plain}, toy.rows(), toy.reward, "column environment: environment is None, expected one of a"),
        ({"a": Ninth, "b": Plain}, [{"environment": "a"}], None, "environment 'b' has no get_reward"),
        (Curt, toy.rows(), toy.reward, "reset failed: .*argument 'prompt_id'.*take every column of a row"),
        (Speaks, None, toy.reward, "no rows.*where reset makes the prompts.*log Z belongs to a prompt"),
    ],
)
def test_rows_that_name_no_prompt_of_their_own_are_refused(environments, rows, reward, message, table, tmp_path):
    with pytest.raises(DisaError, match=message):
        calibrated(tmp_path, table, rows, reward, environment_factory=environments)
