"""A recipe that cannot end well is refused in the first seconds: by ``disa check``, and by a run before any stage."""

import json
import re
import shutil

import pytest
import yaml
from transformers import AutoTokenizer, T5Config

from disa.cli.main import main


class Given:
    """A recipe with given models, to be made unusable in one way."""

    def __init__(self, values, folder, reference):
        self.folder, self.reference = folder, folder / "reference"
        shutil.copytree(reference, self.reference)
        self.values = {k: v for k, v in values.items() if k != "warmup"}
        self.values |= {"models": {"reference": str(self.reference)}, "run_dir": str(folder / "run")}

    def proposal(self):
        """A proposal like the reference; returns its folder."""
        shutil.copytree(self.reference, self.folder / "proposal")
        self.values["models"]["proposal"] = str(self.folder / "proposal")
        return self.folder / "proposal"

    def configured(self, config):
        config.save_pretrained(self.reference)

    def command(self, name):
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.values))
        return main([name, str(path)])


@pytest.fixture
def given(tiny_recipe, reference_folder, tmp_path):
    return Given(tiny_recipe, tmp_path, reference_folder)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_vocabulary(given):
    path = given.proposal() / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(values))


def other_stops(given):
    edit_json(given.proposal() / "generation_config.json", eos_token_id=[1, 3])


def no_tokenizer(given):
    for file in given.reference.glob("tokenizer*"):
        file.unlink()


def adapters(given):
    (given.reference / "config.json").unlink()
    (given.reference / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))


def short_context(given):
    edit_json(given.reference / "config.json", max_position_embeddings=8)


def custom(text):
    def change(given):
        (given.folder / "reward.py").write_text(text)
        rows = [{"prompt": f"ab/{n}:", "answer": "1"} for n in range(20)]
        (given.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"path": str(given.folder / "rows.jsonl"), "verifier": f"{given.folder / 'reward.py'}:reward"}
        given.values["tasks"] = {"name": "dataset", "sources": [source]}

    return change


def too_few_rows(given):
    custom("def reward(completions, **columns):\n    return [1.0] * len(completions)\n")(given)
    given.values["training"] = given.values["training"] | {"prompts_per_step": 400}


CASES = {
    "another vocabulary": (other_vocabulary, r"models\.proposal .*: the ids of 2 tokens are not those of .*reference"),
    "other stop tokens": (other_stops, r"models\.proposal .*: its stop tokens are \[1, 3\] and those of .* \[1\]"),
    "no tokenizer": (no_tokenizer, r"reference: no loadable Hugging Face model or tokenizer"),
    "adapters": (adapters, r"reference: a folder of adapters, expected a whole model.*merge_and_unload"),
    "encoder": (lambda given: given.configured(T5Config()), r"model type t5 has an encoder, expected a causal"),
    "short context": (
        short_context,
        r"prompt \w+, reference: prompt of \d+ tokens .* exceeds .* context of 8",
    ),
    "no such function": (custom("x = 1\n"), r"reward\.py has no reward"),
    "not a function": (custom("reward = 1\n"), r"reward\.py has a int as reward"),
    "a file that fails": (custom("import nothing_of_this_name\n"), r"cannot import .*ModuleNotFoundError"),
    "a function that fails on an empty completion": (
        custom("def reward(completions, **columns):\n    return [1 / len(c) for c in completions]\n"),
        r"reward .*reward\.py:reward: .*ZeroDivisionError",
    ),
    "a reward beyond its range": (
        custom("def reward(completions, **columns):\n    return [3.0] * len(completions)\n"),
        r"reward\.py:reward: the function returned 3 for completion '', outside its declared range",
    ),
    "too few prompts": (too_few_rows, r"training\.prompts_per_step is 400, but disa has \d+ training prompts"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_cannot_work_is_refused_before_any_trajectory(name, command, given, capsys):
    change, message = CASES[name]
    change(given)
    assert given.command(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert "Fix: " in line
    made = sorted(path.name for path in (given.folder / "run").glob("[0-9]_*")) if command == "run" else []
    assert made in ([], ["1_tasks"])


def test_a_usable_recipe_passes_and_leaves_no_file(given, capsys):
    given.proposal()
    assert given.command("check") == 0
    said = capsys.readouterr().out
    assert "tokenizers: the same vocabulary and stop tokens" in said
    assert "nothing to refuse" in said
    assert not (given.folder / "run").exists()


def test_a_chat_template_left_unused_is_warned_of_and_a_used_one_is_not(given, capsys):
    tokenizer = AutoTokenizer.from_pretrained(given.reference)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(given.reference)
    assert given.command("check") == 0
    assert "warning: the tokenizer has a chat template, and prompts go to the model as plain text" in (
        capsys.readouterr().out
    )
    given.values["sampling"] = given.values.get("sampling", {}) | {"conversational": True}
    assert given.command("check") == 0
    assert "warning" not in capsys.readouterr().out
