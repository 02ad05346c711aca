"""benchmarks/tool_countdown.py: traces with a calculator, counted, learned, trained on and evaluated."""

import importlib
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from disa.warmup.small_model import character_tokenizer


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("tool_countdown")


def messages(calls, said):
    made = [{"type": "function", "function": {"name": "c", "arguments": {"x": x}}} for x in calls]
    asked = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in made]
    return [*asked, {"role": "assistant", "content": str(said)}]


def test_every_listed_trace_is_a_mode_of_its_own_target_and_of_no_other(bench):
    found = set(bench.traces([2, 3, 7]))
    assert (("2+7", "3*9"), 27) in found
    assert {calls for calls, target in found if target == 27} == {("2+7", "3*9")}
    # By hand: 2+3, 2+7, 3+7, 2*3, 2*7, 3*7, 3-2, 7-2, 7-3, and no whole quotient; the other steps likewise.
    assert {calls[0] for calls, _ in found} == {"2+3", "2+7", "3+7", "2*3", "2*7", "3*7", "3-2", "7-2", "7-3"}
    for calls, target in found:
        assert bench.mode(messages(calls, target), [2, 3, 7], target) == ",".join(calls)
        assert bench.mode(messages(calls, target), [2, 3, 7], target + 1) is None


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (["2+7", "3*9"], 28),  # another answer than the last result
        (["3*9", "2+7"], 27),  # a number before it is there
        (["2+7"], 9),  # a number left over
        (["2+7", "9*9"], 81),  # a number twice
        (["2+7+3"], 12),  # more than two at once
        (["2+7", "__import__('os')"], 27),
        (["7/2", "3*9"], 27),
    ],
)
def test_other_traces_are_wrong(bench, calls, said):
    assert bench.mode(messages(calls, said), [2, 3, 7], 27) is None


def test_the_order_of_operands_of_a_sum_or_product_is_no_mode_of_its_own(bench):
    assert bench.mode(messages(["7+2", "9*3"], 27), [2, 3, 7], 27) == "2+7,3*9"


@pytest.mark.parametrize("text", ["", "3", "3*", "9**9", "1/0", "2-3", "__import__('os')", "(" * 300])
def test_the_calculator_answers_whatever_it_is_asked(bench, text):
    assert bench.c(text) == "?"
    assert bench.c("3 * 9") == "27"


def test_what_the_template_writes_is_read_back_as_the_calls_that_were_made(bench):
    tokenizer = character_tokenizer(bench.ALPHABET)
    tokenizer.chat_template, tokenizer.response_template = bench.TEMPLATE, bench.CALLS
    row = bench.draw_rows(bench.Size(high=7, heldout=3, validation=0, train=0, warmup=0))["heldout"][0]
    shown = bench.demonstration(row, random.Random(0), noisy=False)
    rendered = tokenizer.apply_chat_template(shown, return_assistant_tokens_mask=True, return_dict=True)
    first = rendered["assistant_masks"].index(1)
    ids, mask = rendered["input_ids"][first:], rendered["assistant_masks"][first:]
    assert tokenizer.decode(rendered["input_ids"][:first]) == row["prompt"][0]["content"] + ":"
    read = bench.said(tokenizer, SimpleNamespace(completion_ids=ids, tool_mask=mask))
    assert [m.get("tool_calls") for m in read] == [m.get("tool_calls") for m in shown[1:]]
    assert bench.mode(read, row["numbers"], row["target"]) == bench.mode(shown[1:], row["numbers"], row["target"])
    assert bench.solved([shown[1:], shown[1:-1]], [row["numbers"]] * 2, [row["target"]] * 2) == [1.0, 0.0]


def test_prompts_of_all_splits_differ_and_have_several_traces(bench):
    splits = bench.draw_rows(bench.Size(high=9))
    rows = [row for split in splits.values() for row in split]
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)
    counted = [len({c for c, t in bench.traces(row["numbers"]) if t == row["target"]}) for row in rows[:20]]
    assert counted == [row["traces"] for row in rows[:20]] and min(counted) > 1


def test_methods_get_equally_many_completions(bench):
    size = bench.Size()
    per_step = size.prompts * size.group
    assert size.steps_of("grpo") * per_step == size.steps_of("disa") * per_step + size.train * size.draws


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_it_runs_from_warm_up_to_the_tables_and_does_nothing_twice(bench, tmp_path):
    size = bench.Size(
        high=7, train=8, validation=2, heldout=2, warmup=20, width=16, warmup_steps=(3, 2), draws=4, samples=8,
        log_z_draws=4, prompts=2, group=4, steps=1, search_steps=1, rates=(1e-3,), seeds=(1,), methods=("disa", "grpo"),
    )  # fmt: skip
    (tmp_path / "reference").mkdir()  # left by one that was killed
    results, search = bench.run(tmp_path, size)
    assert results["reference"][0]["kl_to_reference"] == 0.0
    # A policy one step of 1e-3 away; its draws are scored, and the two models' logarithms are float32.
    assert 1e-7 < abs(results["disa"][0]["kl_to_reference"]) < 0.1
    assert {len(found) for found in results.values()} == {1} and set(search) == {"disa", "grpo"}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    models = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert len(models) == 6
    assert bench.run(tmp_path, size) == (results, search)
    assert {p: p.stat().st_mtime_ns for p in [*before, *models]} == before | models
    text = "\n".join(bench.lines(results, search, size))
    assert "| reference | 0.000" in text and "GRPO 40." in text
