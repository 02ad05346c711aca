"""Demonstrations: the stated share of noise, only what the sampling law could produce, loss on completions alone."""

import json

import pytest
from scipy.stats import binomtest

from disa.errors import DisaError
from disa.lm.sampling_config import SamplingConfig
from disa.runs.records import Prompt
from disa.tasks import make_task
from disa.tasks.config import CountdownConfig, GraphColoringConfig
from disa.warmup.config import WarmupConfig
from disa.warmup.run import demonstration_rows
from disa.warmup.small_model import character_tokenizer

COUNTDOWN = make_task(CountdownConfig(name="countdown", train_prompts=1, heldout_prompts=1, warmup_prompts=60))
COLORING = make_task(
    GraphColoringConfig(name="graph_coloring", vertices=8, train_prompts=1, heldout_prompts=1, warmup_prompts=60)
)
TOKENIZER = character_tokenizer(COUNTDOWN.alphabet + COLORING.alphabet)


def dataset(task=COUNTDOWN, limit=24, noise=0.0, prompts=None, **settings):
    config = WarmupConfig(**{"demonstrations_per_prompt": 20, **settings})
    sampling = SamplingConfig(max_completion_length=limit)
    prompts = task.prompts("warmup") if prompts is None else prompts
    return demonstration_rows(task, prompts, TOKENIZER, sampling, config, noise)


def texts(data):
    """(prompt, completion) of every row, the completion being what the labels keep, without the EOS."""
    result = []
    for row in data:
        completion = [token for token in row["labels"] if token != -100]
        prompt = row["input_ids"][: len(row["input_ids"]) - len(completion)]
        result.append((TOKENIZER.decode(prompt), TOKENIZER.decode(completion[:-1])))
    return result


class Spy:
    """A task that remembers which demonstrations were asked to be noisy."""

    def __init__(self, task):
        self.task, self.noisy = task, []

    def demonstration(self, prompt, rng, *, noisy):
        self.noisy.append(noisy)
        return self.task.demonstration(prompt, rng, noisy=noisy)


@pytest.mark.parametrize("noise", [0.2, 0.6, 0.9])
def test_the_stated_share_of_demonstrations_is_noisy(noise):
    spy = Spy(COUNTDOWN)
    dataset(spy, noise=noise, prompts=COUNTDOWN.prompts("warmup"))
    assert len(spy.noisy) == 1200
    # Three tests at a fixed seed: an honest coin fails one of them for one seed in 3,000.
    assert binomtest(sum(spy.noisy), 1200, noise).pvalue > 1e-4


@pytest.mark.parametrize("noise", [0.2, 0.6])
def test_noisy_demonstrations_are_wrong_in_the_data_except_by_chance(noise):
    by_text = {p.prompt: p for p in COLORING.prompts("warmup")}
    wrong = sum(COLORING.mode(by_text[p], c) is None for p, c in texts(dataset(COLORING, noise=noise)))
    # A random colouring is proper with the chance colourings / 3^8, exactly; the mean over prompts is what a row has.
    right = sum(named_colorings(p) / 3**8 for p in by_text.values()) / len(by_text)
    assert right < 0.2
    # The chances differ between prompts, which makes the count vary less than a binomial's: one seed in 10,000 fails.
    assert binomtest(wrong, 1200, noise * (1 - right)).pvalue > 1e-4


def named_colorings(prompt):
    """Proper colourings with three named colours: 3! / (3 - k)! names for a mode of k colours."""
    return sum({1: 3, 2: 6, 3: 6}[len(set(mode))] for mode in COLORING.solutions(prompt))


def test_without_noise_every_demonstration_is_correct():
    for task in (COUNTDOWN, COLORING):
        by_text = {p.prompt: p for p in task.prompts("warmup")}
        assert all(task.reward(by_text[prompt], completion) == 1.0 for prompt, completion in texts(dataset(task)))


def test_every_prompt_gets_its_demonstrations_and_they_end_in_the_stop_token():
    data = dataset(demonstrations_per_prompt=3)
    assert len(data) == 3 * 60
    for row in data:
        assert len(row["labels"]) == len(row["input_ids"])
        assert row["input_ids"][-1] == row["labels"][-1] == TOKENIZER.eos_token_id
    for (prompt, _), expected in zip(
        texts(data), [p for p in COUNTDOWN.prompts("warmup") for _ in range(3)], strict=True
    ):
        assert prompt == expected.prompt


def test_the_loss_sees_the_completion_and_its_stop_token_only():
    for row in dataset(demonstrations_per_prompt=2):
        hidden = [i for i, label in enumerate(row["labels"]) if label == -100]
        assert hidden == list(range(len(hidden)))
        assert row["labels"][len(hidden) :] == row["input_ids"][len(hidden) :]
        assert "=" in TOKENIZER.decode(row["input_ids"][: len(hidden)])
        assert "=" not in TOKENIZER.decode(row["input_ids"][len(hidden) :])


@pytest.mark.parametrize("limit", [6, 7, 8, 24])
def test_completions_longer_than_the_limit_are_left_out_and_the_others_stay(limit):
    everything = texts(dataset(limit=64))
    kept = texts(dataset(limit=limit))
    # The stop token counts.
    assert kept == [(p, c) for p, c in everything if len(c) + 1 <= limit]
    if limit < 8:
        assert 0 < len(kept) < len(everything)


@pytest.mark.parametrize("limit, prompts", [(5, None), (24, [])], ids=["all too long", "no prompts"])
def test_no_demonstration_left_is_an_error_with_a_way_out(limit, prompts):
    with pytest.raises(DisaError, match="no demonstration fits.*Fix: raise sampling.max_.*tasks.warmup_prompts"):
        dataset(limit=limit, prompts=prompts)


def test_the_seed_decides_the_demonstrations():
    assert texts(dataset(noise=0.5)) == texts(dataset(noise=0.5))
    assert texts(dataset(noise=0.5)) != texts(dataset(noise=0.5, seed=1))


def test_a_prompt_the_tokenizer_cannot_write_is_refused():
    payload = json.dumps({"numbers": [1, 2, 3], "target": 6, "operators": "+-*/"})
    with pytest.raises(DisaError, match="has a character the tokenizer does not know"):
        dataset(prompts=[Prompt("x", "countdown", "warmup", "1 2 3 ~ 6", payload, 1)])


@pytest.mark.parametrize("text", ["a b", "a\nb", "a\n\nb", "\n\n", "  "])
def test_the_character_tokenizer_gives_one_token_a_character_and_reads_it_back(text):
    tokenizer = character_tokenizer("ab \n")
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
