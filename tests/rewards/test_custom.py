"""A user's reward function is called as TRL calls it, and held to the range it declares."""

import asyncio
import pickle
import re
import subprocess
import sys
import textwrap

import pytest

from disa.errors import DisaError
from disa.rewards.custom import CustomReward, import_function


@pytest.fixture
def reward_file(tmp_path):
    """Write a module with the given source; returns ``file.py:function``."""

    def write(source, function="reward", name="mine.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(source))
        return f"{path}:{function}"

    return write


LENGTH = """
def reward(prompts, completions, answer, **columns):
    return [None if gold is None else float(gold in text) for text, gold in zip(completions, answer)]
"""


def test_it_sees_prompts_completions_and_columns_and_its_none_stays_none(reward_file):
    reward = CustomReward(reward_file(LENGTH))
    assert reward(["p", "q", "r"], ["it is 4", "5", "6"], {"answer": ["4", "4", None]}) == [1.0, 0.0, None]
    assert reward.reward_range == (0.0, 1.0)


def test_a_function_of_completions_alone_takes_the_rest_as_keywords(reward_file):
    name = reward_file("def reward(completions, **kwargs):\n    return [level / 4 for level in kwargs['level']]\n")
    assert CustomReward(name)(["p", "q"], ["a", "b"], {"level": [1, 2]}) == [0.25, 0.5]


ASYNC = """
import asyncio

async def one(text):
    await asyncio.sleep(0)
    return 1.0 if text == "yes" else None

async def reward(completions, **kwargs):
    return await asyncio.gather(*(one(text) for text in completions))
"""


def test_an_async_function_is_awaited_also_from_within_an_event_loop(reward_file):
    reward = CustomReward(reward_file(ASYNC))
    assert reward(["p"] * 3, ["yes", "no", "yes"], {}) == [1.0, None, 1.0]

    async def notebook_cell():
        return reward(["p"], ["yes"], {})

    assert asyncio.run(notebook_cell()) == [1.0]


def test_conversational_rewards_see_messages_as_trl_sends_them(reward_file):
    name = reward_file(
        """
        def reward(prompts, completions, **kwargs):
            assert [p[-1]["role"] for p in prompts] == ["user"]
            return [1.0 if c[0] == {"role": "assistant", "content": "hi"} else 0.0 for c in completions]
        """
    )
    assert CustomReward(name, conversational=True)(["p"], ["hi"], {}) == [1.0]


def test_a_range_may_be_declared_by_the_function_or_by_the_setting(reward_file):
    name = reward_file(
        """
        def reward(completions, **kwargs):
            return [-2.0 for _ in completions]

        reward.reward_range = (-2, 3)
        """
    )
    assert CustomReward(name).reward_range == (-2.0, 3.0)
    assert CustomReward(name)(["p"], ["c"], {}) == [-2.0]
    with pytest.raises(DisaError, match=r"returned -2 .* outside its declared range \[-1, 1\]"):
        CustomReward(name, (-1.0, 1.0))(["p"], ["c"], {})


@pytest.mark.parametrize("value", ["1.0000001", "-1e-9", "float('inf')", "2"])
def test_a_reward_outside_the_range_is_refused_with_the_reason(value, reward_file):
    reward = CustomReward(reward_file(f"def reward(completions, **kwargs):\n    return [0.5, {value}]\n"))
    with pytest.raises(DisaError, match="outside its declared range") as caught:
        reward(["p", "p"], ["fine", "the second"], {})
    for part in ("mine.py:reward", "'the second'", "[0, 1]", "log Z lies between beta times its ends", "Fix: "):
        assert part in str(caught.value)


def test_the_ends_of_the_range_belong_to_it(reward_file):
    reward = CustomReward(reward_file("def reward(completions, **kwargs):\n    return [0, 1, True, False]\n"))
    assert reward(["p"] * 4, ["c"] * 4, {}) == [0.0, 1.0, 1.0, 0.0]


BAD = {
    "too few": ("return [0.0]", "returned 1 rewards for 2 completions"),
    "too many": ("return [0.0] * 3", "returned 3 rewards for 2 completions"),
    "text": ("return ['good', 1.0]", "returned 'good' for completion 'first'"),
    "nan": ("return [float('nan'), 1.0]", "returned NaN for completion 'first'"),
    "one number": ("return 1.0", "raised TypeError"),
    "nothing": ("return None", "raised TypeError"),
    "an error": ("raise KeyError('gold')", "raised KeyError: 'gold'"),
}


@pytest.mark.parametrize(("body", "message"), BAD.values(), ids=BAD.keys())
def test_what_a_function_does_wrong_is_said_in_one_line(body, message, reward_file):
    reward = CustomReward(reward_file(f"def reward(completions, **kwargs):\n    {body}\n"))
    with pytest.raises(DisaError, match=re.escape(message)) as caught:
        reward(["p", "p"], ["first", "second"], {})
    assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_keyword_is_an_error_that_names_it(reward_file):
    with pytest.raises(DisaError, match="raised TypeError: .*'answer'"):
        CustomReward(reward_file(LENGTH))(["p"], ["c"], {})


NAMES = {
    "no function": ("json", "names no reward function"),
    "empty function": ("json:", "names no reward function"),
    "no module": ("no_such_module_here:reward", "cannot import no_such_module_here"),
    "no file": ("nowhere/mine.py:reward", "cannot import nowhere/mine.py"),
    "not there": ("json:reward", "json has no reward"),
    "not a function": ("json:__doc__", "json has a str as __doc__"),
}


@pytest.mark.parametrize(("name", "message"), NAMES.values(), ids=NAMES.keys())
def test_a_name_that_leads_nowhere_is_refused(name, message):
    with pytest.raises(DisaError, match=re.escape(message)):
        import_function(name)


def test_a_file_that_fails_to_import_is_named_with_its_error(reward_file):
    with pytest.raises(DisaError, match="cannot import .*mine.py .ZeroDivisionError"):
        CustomReward(reward_file("1 / 0\n"))


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_that_bounds_nothing_is_refused(bounds, reward_file):
    with pytest.raises(DisaError, match="is not two finite, increasing numbers"):
        CustomReward(reward_file(LENGTH), bounds)


def test_the_fingerprint_follows_the_file_and_the_functions_own_wins(reward_file):
    first = CustomReward(reward_file(LENGTH)).fingerprint
    assert CustomReward(reward_file(LENGTH, name="copy.py")).fingerprint == first
    # A helper the function calls is part of the reward.
    assert CustomReward(reward_file(LENGTH + "\nHELPER = 1\n", name="other.py")).fingerprint != first
    assert CustomReward(reward_file(LENGTH + "\nreward.fingerprint = 'v2'\n", name="own.py")).fingerprint == "v2"


def test_a_reward_of_a_file_is_found_again_by_another_process_in_another_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def length(completions, **columns):\n    return [float(bool(c)) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(CustomReward("mine.py:length"))
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())(['p', 'p'], ['a', ''], {}))"
    run = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, cwd="/", check=True)
    assert run.stdout.decode().strip() == "[1.0, 0.0]"
