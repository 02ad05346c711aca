"""The parts of the plugin that need no verl: they run on every reward worker, or before it is imported."""

import dataclasses
import importlib.util
import json
import math

import pytest
from pydantic import TypeAdapter

from disa.cli.main import main
from disa.errors import DisaError
from disa.tasks import TaskSection, make_task
from disa.tasks.config import CountdownConfig
from disa.verl.reward import compute_score

CONFIG = CountdownConfig(name="countdown", numbers=3, train_prompts=2, heldout_prompts=1, warmup_prompts=1)
TASK = make_task(CONFIG)
PROMPT = TASK.prompts("train")[0]
ROW = {"log_z": 0.75, "anchor": "digest", "turn_scores": [], **dataclasses.asdict(PROMPT)}


def score(text, row=ROW, **changes):
    settings = {
        "task": json.dumps(CONFIG.model_dump(mode="json")),
        "reward": TASK.reward_fingerprint,
        "anchor": "digest",
        "inverse_temperature": 3.0,
        "refusals": "/nonexistent/refusals",
    }
    return compute_score("disa/countdown", text, PROMPT.payload, row, **settings | changes)


def test_the_score_is_beta_times_reward_minus_log_z():
    assert score(TASK.solutions(PROMPT)[0]) == {"score": 2.25, "acc": 1.0, "reward": 1.0, "log_z": 0.75}
    assert score("1+1") == {"score": -0.75, "acc": 0.0, "reward": 0.0, "log_z": 0.75}


def test_an_undecided_completion_has_no_score():
    # A data set whose verifier decides nothing: the loss leaves NaN out, and a 0 would be a failure.
    verifier = f"{__file__}:undecided"
    config = {"name": "dataset", "sources": [{"path": "rows.jsonl", "verifier": verifier}]}
    task = make_task(TypeAdapter(TaskSection).validate_python(config))
    payload = json.dumps({"verifier": verifier, "pattern": None, "gold": {"columns": {}}})
    row = ROW | {"payload": payload, "task": "dataset"}
    found = score("1", row, task=json.dumps(config), reward=task.reward_fingerprint)
    assert all(math.isnan(found[name]) for name in ("score", "acc", "reward"))
    assert found["log_z"] == 0.75


def undecided(completions, **columns):
    return [None] * len(completions)


def test_a_row_of_another_anchor_is_refused_and_the_launcher_can_read_why(tmp_path):
    with pytest.raises(DisaError, match="comes from anchor other, training from anchor digest"):
        score("1", ROW | {"anchor": "other"}, refusals=str(tmp_path / "refusals"))
    [said] = (tmp_path / "refusals").iterdir()
    assert "comes from anchor other, training from anchor digest" in said.read_text()


def test_a_node_with_another_version_of_the_reward_is_refused(tmp_path):
    with pytest.raises(DisaError, match=r"this node's reward is countdown:.*estimated for countdown:0"):
        score("1", reward="countdown:0[0.0, 1.0]", refusals=str(tmp_path))


def test_every_field_of_a_prompt_reaches_the_reward(tmp_path):
    # A row without one field cannot be judged, and says which.
    for name in dataclasses.asdict(PROMPT):
        with pytest.raises(KeyError, match=name):
            score("1", {key: value for key, value in ROW.items() if key != name}, refusals=str(tmp_path))
    assert set(ROW) > set(dataclasses.asdict(PROMPT))


@pytest.mark.skipif(importlib.util.find_spec("verl") is not None, reason="verl is installed")
def test_without_verl_the_command_says_how_to_get_it(write_recipe, tiny_recipe, capsys):
    recipe = write_recipe(tiny_recipe | {"sampling": {"conversational": True}})
    assert main(["verl", str(recipe)]) == 2
    assert "verl is not installed. Fix: pip install 'verl==0.9.1'" in capsys.readouterr().err
