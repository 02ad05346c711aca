"""Trajectories from files: taken exactly as they are where they are the law's, marked or refused where not."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disa.errors import DisaError
from disa.lm.sampler import Draw
from disa.lm.sampling_config import SamplingConfig
from disa.proposals.imported import ImportedTrajectories, files_digest
from disa.proposals.protocol import Job
from disa.runs.parquet_rows import write_rows
from disa.runs.records import Prompt, Trajectory
from disa.testing import Space
from disa.testing.hf import oracle_tokenizer

SPACE = Space(vocabulary=4, length_limit=4)
TOKENIZER = oracle_tokenizer(SPACE)
LAW = SamplingConfig(max_completion_length=SPACE.length_limit)
PROMPTS = [Prompt(f"id-{p}", "oracle", "train", p, "{}", None) for p in "012"]
WHOLE = {"prompt_id": "id-0", "completion": "ab", "completion_ids": [1, 2, 0], "log_prob": -1.5}


def write(path, rows):
    if path.suffix == ".parquet":
        names = {name: None for row in rows for name in row}
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(files, sampling=LAW):
    return ImportedTrajectories(files, PROMPTS, TOKENIZER, sampling, (0,))


def draws(held, prompt_id):
    return held.draw([Job(prompt_id, [], number, 0) for number in range(held.count(prompt_id))])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_are_taken_in_order_by_prompt_id_or_by_prompt_and_others_are_counted(tmp_path, name):
    rows = [
        WHOLE,
        {"prompt": "1", "completion": "abca", "completion_ids": [1, 2, 3, 1], "truncated": True, "log_prob": -2},
        {"prompt_id": "id-0", "completion": "c", "completion_ids": [3, 0]},
        {"prompt_id": "of another run", "completion": "c"},
    ]
    held = load([write(tmp_path / name, rows)])
    assert draws(held, "id-0") == [Draw([1, 2, 0], False, -1.5), Draw([3, 0], False, None)]
    assert draws(held, "id-1") == [Draw([1, 2, 3, 1], True, -2)]
    assert (held.count("id-2"), held.left_out) == (0, 1)


def test_several_files_are_read_one_after_the_other(tmp_path):
    files = [write(tmp_path / "b.jsonl", [WHOLE]), write(tmp_path / "a.parquet", [WHOLE | {"log_prob": -3.0}])]
    assert [d.log_prob for d in draws(load(files), "id-0")] == [-1.5, -3.0]


def own_rows():
    """Rows as 2_proposals holds them: the proposal's, one of them known as text only, and one of the reference."""
    row = Trajectory("id-0", 0, "proposal", "ab", [1, 2, 0], False, -1.5)
    return [
        row,
        dataclasses.replace(row, draw=1, log_sampler=-2.5, retokenised=True),
        dataclasses.replace(row, draw=2, log_sampler=None),
        dataclasses.replace(row, source="reference", log_sampler=-0.5),
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_of_an_own_run_keep_log_probability_and_mark_and_the_references_are_left_out(tmp_path, name):
    if name.endswith("parquet"):
        write_rows(tmp_path / name, own_rows(), Trajectory)
    else:
        write(tmp_path / name, [dataclasses.asdict(row) for row in own_rows()])
    held = load([str(tmp_path / name)])
    expected = [Draw([1, 2, 0], False, -1.5), Draw([1, 2, 0], False, -2.5, True), Draw([1, 2, 0], False, None)]
    assert (draws(held, "id-0"), held.left_out) == (expected, 1)


def test_a_column_named_source_is_read_in_own_rows_only(tmp_path):
    held = load([write(tmp_path / "a.jsonl", [WHOLE | {"source": "reference"}, WHOLE | {"source": 7}])])
    assert (held.count("id-0"), held.left_out) == (2, 0)


@pytest.mark.parametrize("ids", [None, [2, 2, 0], [1, 2, 900], [-1]], ids=str)
def test_text_without_ids_of_the_references_tokenizer_is_tokenised_and_marked(tmp_path, ids):
    row = WHOLE | {"completion_ids": ids}
    assert draws(load([write(tmp_path / "a.jsonl", [row])]), "id-0") == [Draw([1, 2, 0], False, -1.5, True)]


def test_a_cut_text_is_accepted_only_where_it_ends_at_the_limit_in_these_tokens_too(tmp_path):
    row = {"prompt_id": "id-0", "completion": "abca", "truncated": True}
    assert draws(load([write(tmp_path / "a.jsonl", [row])]), "id-0") == [Draw([1, 2, 3, 1], True, None, True)]
    with pytest.raises(DisaError, match="row 0: the text was cut, and it has 3 tokens where the limit is 4.*Fix: "):
        load([write(tmp_path / "a.jsonl", [row | {"completion": "abc"}])])


REFUSED = {
    "no completion": ({"completion": None}, "row 1: fields are missing"),
    "no prompt": ({"prompt_id": None}, "row 1: fields are missing"),
    "text that is a number": ({"completion": 3}, "row 1, field completion: expected str, found 3"),
    "ids that are text": ({"completion_ids": ["a"]}, "field completion_ids: expected list of token ids"),
    "truncated that is a number": ({"truncated": 1}, "field truncated: expected bool, found 1"),
    "log_prob that is true": ({"log_prob": True}, "field log_prob: expected float, found True"),
    "log_prob above 0": ({"log_prob": 0.5}, "log_prob is 0.5, expected a number up to 0"),
    "infinite log_prob": ({"log_prob": -np.inf}, "log_prob is -inf"),
    "positive log_sampler": ({"log_prob": None, "log_sampler": 0.5}, "log_sampler is 0.5, expected a number up to 0"),
    "two log-probabilities": ({"log_sampler": -2.5}, "log_prob is -1.5 and log_sampler -2.5, expected the same"),
    "no stop token": ({"completion_ids": [1, 2]}, "truncated is false, and of 2 completion_ids those at \\[\\]"),
    "a stop token too early": ({"completion_ids": [1, 0, 2, 0]}, "of 4 completion_ids those at \\[1, 3\\]"),
    "truncated with a stop token": ({"truncated": True}, "truncated is true, and of 3 completion_ids those at \\[2\\]"),
    "truncated before the limit": ({"completion_ids": [1, 2], "truncated": True}, "truncated is true"),
    "a tool's tokens": ({"tool_mask": [1, 0, 1]}, "tools or an environment wrote some of its tokens .tool_mask."),
    "too long": ({"completion": "abcab", "completion_ids": None}, "6 tokens, the stop token included.*limit is 4"),
    "too long in ids": ({"completion": "abcab", "completion_ids": [1, 2, 3, 1, 2, 0]}, "6 tokens.*the limit is 4"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=list(REFUSED))
def test_rows_that_the_sampling_law_could_not_write_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(DisaError, match=f"a.jsonl.*{message}.*Fix: "):
        load([write(tmp_path / "a.jsonl", [WHOLE, WHOLE | change])])


def test_files_that_are_missing_unreadable_or_of_another_run_are_refused(tmp_path):
    with pytest.raises(DisaError, match="gone.jsonl: file not found.*Fix: "):
        load([str(tmp_path / "gone.jsonl")])
    for name, content, message in [
        ("a.jsonl", b"{", "row 0: not valid JSON"),
        ("a.jsonl", b"[1]", "row 0: holds a list, expected an object"),
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DisaError, match=f"{name}.*{message}.*Fix: "):
            load([str(tmp_path / name)])
    with pytest.raises(DisaError, match="none of 1 rows is the proposal's and belongs to a prompt of this run.*Fix: "):
        load([write(tmp_path / "a.jsonl", [WHOLE | {"prompt_id": "other"}])])


def test_the_digest_is_the_contents(tmp_path):
    one, other = (write(tmp_path / f"{n}.jsonl", [WHOLE | {"log_prob": -n}]) for n in (1, 2))
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "1.jsonl").read_bytes())
    assert files_digest([one]) == files_digest([str(tmp_path / "copy.jsonl")]) != files_digest([other])
    assert len(files_digest([one, other])) == 2
