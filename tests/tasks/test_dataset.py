"""Rows of files and of the hub become prompts with gold answers, or are refused by file, row and field."""

import json
import random
import re
import textwrap
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from disa.errors import DisaError
from disa.lm.sampling_config import SamplingConfig
from disa.recipe import load_recipe
from disa.runs.records import Prompt
from disa.tasks import SPLITS, judges, make_task
from disa.tasks.benchmarks import BOXED
from disa.tasks.dataset_config import DatasetConfig, SourceConfig


@pytest.fixture
def jsonl(tmp_path):
    """Write rows, or text as it is, to a JSONL file; returns its path as text."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def task_of(*sources, **settings):
    return make_task(DatasetConfig(name="dataset", sources=sources, **settings))


def exact(path, **settings):
    return {"path": path, "verifier": "exact", "use": "train"} | settings


def gold(prompt):
    return json.loads(prompt.payload)["gold"]


CAPITALS = [
    {"id": f"c{i}", "prompt": f"Capital of {land}?", "answer": town}
    for i, (land, town) in enumerate([("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Peru", "Lima")])
]


def test_a_jsonl_file_becomes_prompts_with_their_gold_answers(jsonl):
    task = task_of(exact(jsonl(CAPITALS)))
    rows = task.prompts("train")
    assert [row.prompt for row in rows] == [c["prompt"] for c in CAPITALS]
    assert [gold(row) for row in rows] == [{"answers": [c["answer"]]} for c in CAPITALS]
    assert [json.loads(row.payload)["row"] for row in rows] == ["c0", "c1", "c2", "c3"]
    assert {row.n_solutions for row in rows} == {None}
    assert {row.task for row in rows} == {"dataset"} and {row.split for row in rows} == {"train"}
    assert task.prompts("heldout") == []


def test_a_parquet_file_and_nested_columns_are_read_alike(jsonl, tmp_path):
    nested = [{"prompt": [{"role": "user", "content": c["prompt"]}], "reward": {"gold": c["answer"]}} for c in CAPITALS]
    columns = {"prompt": "prompt.0.content", "answer": "reward.gold"}
    pq.write_table(pa.Table.from_pylist(nested), tmp_path / "rows.parquet")
    plain = task_of(exact(jsonl(CAPITALS))).prompts("train")
    for path in (str(tmp_path / "rows.parquet"), jsonl(nested, "nested.jsonl")):
        rows = task_of(exact(path, columns=columns)).prompts("train")
        assert [(r.prompt_id, r.prompt, gold(r)) for r in rows] == [(r.prompt_id, r.prompt, gold(r)) for r in plain]


def test_a_hub_data_set_is_read_by_the_datasets_library(jsonl, tmp_path, monkeypatch):
    import datasets

    # A folder stands for a data set id: load_dataset reads both alike, and there is no network here.
    folder = tmp_path / "org" / "capitals"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(c) + "\n" for c in CAPITALS))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = {"hub": str(folder), "split": "test", "verifier": "exact", "use": "train"}
    rows = task_of(source).prompts("train")
    assert [row.prompt for row in rows] == [c["prompt"] for c in CAPITALS]
    with pytest.raises(DisaError, match="data set .*capitals/nope: cannot be loaded") as caught:
        task_of(source | {"split": "nope"}).prompts("train")
    assert "Fix: " in str(caught.value)


def test_what_the_hub_cannot_give_is_one_line_with_the_way_out():
    task = task_of({"hub": "org/no-such-data-set", "verifier": "exact"})
    with pytest.raises(DisaError, match="data set org/no-such-data-set/train: cannot be loaded.*give a local file"):
        task.prompts("train")
    with pytest.raises(DisaError, match="data set openai/gsm8k: cannot be loaded.*give a local file"):
        task_of({"benchmark": "gsm8k"}).prompts("heldout")


ANSWERS = [("4", ["4"]), (4, ["4"]), (27.0, ["27"]), (2.5, ["2.5"]), (" x ", ["x"]), (["1", 2], ["1", "2"])]


@pytest.mark.parametrize(("value", "expected"), ANSWERS)
def test_answers_are_texts_numbers_or_lists_of_them(value, expected, jsonl):
    task = task_of(exact(jsonl([{"prompt": "p", "answer": value}])))
    assert gold(task.prompts("train")[0]) == {"answers": expected}


def test_the_answer_can_be_what_follows_a_mark(jsonl):
    rows = [{"prompt": "a", "answer": "1+1=2\n#### 2"}, {"prompt": "b", "answer": "#### 3 #### 1,080"}]
    task = task_of(exact(jsonl(rows), answer_after="####", columns={"solution": "answer"}))
    assert [gold(row)["answers"] for row in task.prompts("train")] == [["2"], ["1080"]]
    assert task.demonstration(task.prompts("train")[0], random.Random(0), noisy=False) == "1+1=2\n#### 2"


def test_olympiad_columns_reach_the_gold_answer(jsonl):
    rows = [
        {"q": "x?", "context": "Given y.", "final_answer": ["$1,2$"], "is_multiple_answer": True, "unit": None},
        {"q": "z?", "context": None, "final_answer": ["4.2"], "error": "1e-1", "unit": "km"},
    ]
    columns = {"prompt": "q", "answer": "final_answer", "multiple": "is_multiple_answer"}
    first, second = task_of(exact(jsonl(rows), columns=columns)).prompts("train")
    assert first.prompt == "Given y.\n\nx?" and gold(first) == {"answers": ["$1,2$"], "multiple": True}
    assert second.prompt == "z?" and gold(second) == {"answers": ["4.2"], "error": "1e-1", "unit": "km"}


BAD_ROWS = {
    "no prompt": ([{"answer": "4"}], "row 0, field prompt: column 'prompt' is missing, the row has answer"),
    "no answer": ([{"prompt": "p"}], "row 0, field answer: column 'answer' is missing"),
    "null answer": ([CAPITALS[0], {"prompt": "p", "answer": None}], "row 1, field answer: column 'answer' is missing"),
    "empty answer": ([{"prompt": "p", "answer": ""}], "row 0, field answer: column 'answer' is empty"),
    "blank answer": ([{"prompt": "p", "answer": "  "}], "row 0, field answer: '  ' is no answer"),
    "truth value": ([{"prompt": "p", "answer": True}], "row 0, field answer: True is no answer"),
    "structure": ([{"prompt": "p", "answer": {"a": 1}}], "field answer: {'a': 1} is no answer"),
    "messages": ([{"prompt": [{"content": "p"}], "answer": "4"}], "field prompt: column 'prompt' holds a list"),
    "no JSON": ('{"prompt": "p", "answer": "4"}\n{"prompt": \n', "row 1: not valid JSON"),
    "no object": ('["p", "4"]\n', "row 0: holds a list, expected an object"),
    "no text": ("\x00\n", "row 0: not valid JSON"),
    "no rows": ("\n\n", "no complete rows"),
}


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_an_unusable_row_is_named_by_file_row_and_field(rows, message, jsonl):
    path = jsonl(rows)
    with pytest.raises(DisaError, match=re.escape(message)) as caught:
        task_of(exact(path)).prompts("train")
    assert path in str(caught.value) and "Fix: " in str(caught.value)


def test_a_mark_that_is_not_there_is_an_error(jsonl):
    with pytest.raises(DisaError, match="row 0, field answer: nothing follows '####' in 'Paris'.*set answer_after: ''"):
        task_of(exact(jsonl(CAPITALS), answer_after="####")).prompts("train")


def test_a_worked_solution_as_a_maths_answer_is_refused_with_the_way_to_its_answer(jsonl):
    source = exact(jsonl([{"prompt": "a", "answer": "1+1=2\n#### 2"}])) | {"verifier": "maths"}
    with pytest.raises(DisaError, match="row 0, field answer: .* holds a worked solution.*set answer_after: '####'"):
        task_of(source).prompts("train")
    assert task_of(source | {"answer_after": "####"}).prompts("train")


def test_incomplete_rows_can_be_left_out_and_are_reported(jsonl):
    rows = [CAPITALS[0], {"prompt": "p", "answer": None}, CAPITALS[1], {"answer": "4"}]
    task = task_of(exact(jsonl(rows), drop_incomplete=True))
    assert [row.prompt for row in task.prompts("train")] == [CAPITALS[0]["prompt"], CAPITALS[1]["prompt"]]
    report = task.data_report()
    assert report.facts["sources"][0]["incomplete"] == 2
    incomplete = report.left_out["incomplete"]
    assert [line.split("rows.jsonl, ")[1].split(":")[0] for line in incomplete] == [
        "row 1, field answer",
        "row 3, field prompt",
    ]


FILES = {
    "missing": ("none.jsonl", "none.jsonl: file not found"),
    "folder": (".", "file not found"),
    "csv": ("rows.csv", "files of type .csv are not read"),
    "not Parquet": ("rows.parquet", "rows.parquet: not a readable Parquet file"),
}


@pytest.mark.parametrize(("name", "message"), FILES.values(), ids=FILES.keys())
def test_an_unreadable_file_is_refused(name, message, tmp_path):
    for made in ("rows.csv", "rows.parquet"):
        (tmp_path / made).write_text("prompt,answer\np,4\n")
    with pytest.raises(DisaError, match=re.escape(message)):
        task_of(exact(str(tmp_path / name))).prompts("train")


def test_templates_and_few_shot_text_surround_the_problem_and_leave_other_braces_alone(jsonl):
    source = exact(
        jsonl([{"prompt": "What is {x}?", "answer": "4"}]),
        few_shot="Q: 1+1?\nA: \\boxed{2}\n\n",
        prompt_template="Q: {prompt}\nAnswer in \\boxed{} with {curly} braces.",
    )
    (row,) = task_of(source).prompts("train")
    assert row.prompt == ("Q: 1+1?\nA: \\boxed{2}\n\nQ: What is {x}?\nAnswer in \\boxed{} with {curly} braces.")


def test_maths_rows_ask_for_the_box_that_is_looked_for(jsonl):
    path = jsonl([{"prompt": "1+1?", "answer": "2"}])
    (row,) = task_of({"path": path, "verifier": "maths", "use": "train"}).prompts("train")
    assert row.prompt == BOXED.replace("{prompt}", "1+1?")
    assert "\\boxed{}" in row.prompt
    source = {"path": path, "verifier": "maths", "use": "train", "answer_pattern": "A: (.*)"}
    assert task_of(source).prompts("train")[0].prompt == "1+1?"


def test_a_system_prompt_joins_a_row_as_it_joins_any_prompt(jsonl):
    sampling = SamplingConfig(conversational=True, system_prompt="Be brief.")
    (row,) = task_of(exact(jsonl(CAPITALS[:1]))).prompts("train")
    assert sampling.trainer_prompt(row.prompt) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital of France?"},
    ]


NUMBERS = [{"id": i, "prompt": f"Problem number {i}", "answer": str(i)} for i in range(2000)]


def test_a_hash_split_has_its_shares_and_moves_no_row_when_rows_are_added(jsonl):
    shares = {"heldout_share": 0.2, "validation_share": 0.1, "warmup_share": 0.3}
    source = {"path": jsonl(NUMBERS), "verifier": "exact"}
    task = task_of(source, **shares)
    sizes = {split: len(task.prompts(split)) for split in SPLITS}
    assert sum(sizes.values()) == 2000
    for split, share in {"heldout": 0.2, "validation": 0.1, "warmup": 0.3, "train": 0.4}.items():
        # Five binomial standard deviations.
        assert abs(sizes[split] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    fewer = task_of({"path": jsonl(NUMBERS[500:1500][::-1], "fewer.jsonl"), "verifier": "exact"}, **shares)
    for split in SPLITS:
        ids = {row.prompt_id for row in task.prompts(split)}
        assert {row.prompt_id for row in fewer.prompts(split)} <= ids
    other = task_of(source, seed=1, **shares)
    assert {r.prompt_id for r in other.prompts("heldout")} != {r.prompt_id for r in task.prompts("heldout")}


def test_copies_in_other_spelling_are_hashed_into_one_split(jsonl):
    shares = {"heldout_share": 0.5}
    lower = task_of({"path": jsonl(NUMBERS[:100]), "verifier": "exact"}, **shares)
    rows = [n | {"prompt": n["prompt"].upper() + " ."} for n in NUMBERS[:100]]
    upper = task_of({"path": jsonl(rows, "upper.jsonl"), "verifier": "exact"}, **shares)
    for split in ("train", "heldout"):
        numbers = [[gold(row) for row in task.prompts(split)] for task in (lower, upper)]
        assert numbers[0] == numbers[1] != []


def test_a_limit_keeps_a_fixed_choice_and_reports_the_rest(jsonl):
    source = exact(jsonl(NUMBERS))
    small, large = task_of(source, train_prompts=50), task_of(source, train_prompts=80)
    kept = [row.prompt_id for row in small.prompts("train")]
    assert len(kept) == 50 and len(large.prompts("train")) == 80
    assert set(kept) <= {row.prompt_id for row in large.prompts("train")}
    assert kept == [r.prompt_id for r in large.prompts("train") if r.prompt_id in set(kept)]
    assert small.data_report().facts["over_limit"] == {"train": 1950}
    assert task_of(source, train_prompts=5000).data_report().facts["over_limit"] == {}


def test_only_rows_with_a_value_to_keep_become_prompts_and_all_are_counted(jsonl):
    rows = [row | {"level": float(i)} for i, row in enumerate(CAPITALS)]  # as Parquet and JSON often hold integers
    task = task_of(exact(jsonl(rows), keep={"level": [1, 3]}))
    assert [row.prompt for row in task.prompts("train")] == [CAPITALS[1]["prompt"], CAPITALS[3]["prompt"]]
    (facts,) = task.data_report().facts["sources"]
    assert (facts["rows"], facts["kept"]) == (4, 2)


@pytest.mark.parametrize(
    "keep, message",
    [
        ({"level": [7]}, "field keep: no row is kept of 4. Fix: name values that the columns hold"),
        ({"grade": [1]}, "row 0, field keep: column 'grade' is missing"),
    ],
)
def test_values_to_keep_that_no_row_has_are_an_error(keep, message, jsonl):
    rows = [row | {"level": i} for i, row in enumerate(CAPITALS)]
    with pytest.raises(DisaError, match=re.escape(message)):
        task_of(exact(jsonl(rows), keep=keep)).prompts("train")


def test_prompt_ids_follow_what_is_asked_and_what_is_right_not_place_or_name(jsonl):
    rows = task_of(exact(jsonl(CAPITALS))).prompts("train")
    moved = task_of(exact(jsonl(CAPITALS[::-1], "moved.jsonl"))).prompts("train")
    assert {r.prompt_id for r in rows} == {r.prompt_id for r in moved}
    assert len({r.prompt_id for r in rows}) == 4
    other = task_of(exact(jsonl([CAPITALS[0] | {"answer": "Lyon"}], "other.jsonl"))).prompts("train")
    assert other[0].prompt == rows[0].prompt and other[0].prompt_id != rows[0].prompt_id


def test_the_fingerprint_follows_the_files_content_and_the_mapping_but_not_the_split(jsonl):
    path = jsonl(CAPITALS)
    first = task_of(exact(path)).fingerprint
    assert task_of(exact(path, use="heldout"), seed=3).fingerprint == first
    assert task_of(exact(jsonl(CAPITALS, "moved.jsonl"))).fingerprint == first
    assert task_of(exact(path, prompt_template="{prompt}!")).fingerprint != first
    jsonl([*CAPITALS[:3], CAPITALS[3] | {"answer": "Cusco"}])
    assert task_of(exact(path)).fingerprint != first


def test_exact_answers_are_compared_up_to_white_space(jsonl):
    rows = [{"prompt": "p", "answer": ["New  York", "NYC"]}]
    task = task_of(exact(jsonl(rows)), exact(jsonl(rows, "b.jsonl"), answer_pattern=r"A: ([^\n]*)"))
    (row,) = task.prompts("train")
    judged = {" New York\n": 1.0, "NYC": 1.0, "new york": 0.0, "A: NYC": 0.0, "": 0.0, "New York City": 0.0}
    assert task.rewards([row] * len(judged), list(judged)) == list(judged.values())
    # The second file repeats the first, but another place of the answer is another problem.
    (other,) = task_of(exact(jsonl(rows), answer_pattern=r"A: ([^\n]*)")).prompts("train")
    assert other.prompt_id != row.prompt_id
    assert task.rewards([other] * 3, ["A: nope\nA: NYC\n", "NYC", "A: NYC\nA: nope"]) == [1.0, 0.0, 0.0]


REWARD = """
CALLS = []

def reward(prompts, completions, level, **columns):
    CALLS.append((list(prompts), sorted(columns)))
    return [None if text == "?" else min(len(text), n) for text, n in zip(completions, level)]

reward.reward_range = (0, 5)
"""


@pytest.fixture
def custom(tmp_path):
    """A reward function's name, bound to rows with a column it reads."""
    path = tmp_path / "mine.py"
    path.write_text(REWARD)
    return f"{path}:reward"


def test_a_custom_reward_sees_the_columns_and_none_stays_undecided(jsonl, custom):
    # No answer column: a custom reward reads what it wants.
    rows = [{"prompt": "a", "level": 2}, {"prompt": "b", "level": 5}]
    task = task_of({"path": jsonl(rows), "verifier": custom, "use": "train"})
    a, b = task.prompts("train")
    assert task.reward_range == (0.0, 5.0)
    assert task.rewards([a, b, b], ["xxxx", "?", "xxxx"]) == [2.0, None, 4.0]
    assert task.reward(b, "?") is None
    # The function's file, its own range, and the task's.
    assert re.fullmatch(r"dataset:reward:[0-9a-f]{16}\[0.0, 5.0\]\[0.0, 5.0\]", task.reward_fingerprint)
    narrow = task_of({"path": jsonl(rows), "verifier": custom, "use": "train"}, reward_range=(0, 3))
    with pytest.raises(DisaError, match=r"returned 4 .*outside its declared range \[0, 3\].*log Z"):
        narrow.rewards([b], ["xxxx"])


def test_verifiers_are_mixed_in_one_task_and_each_sees_its_share_at_once(jsonl, custom, monkeypatch):
    seen = []

    class Counted(judges.ExactJudge):
        def __call__(self, golds, prompts, completions):
            seen.append(list(completions))
            return super().__call__(golds, prompts, completions)

    monkeypatch.setattr(judges, "ExactJudge", Counted)
    leveled = [{"prompt": f"level {n}", "answer": "-", "level": n} for n in (1, 2)]
    task = task_of(exact(jsonl(CAPITALS)), {"path": jsonl(leveled, "l.jsonl"), "verifier": custom, "use": "train"})
    rows = task.prompts("train")
    order = [0, 4, 1, 5, 2]
    completions = ["Paris", "xxx", "Oslo", "xxx", "Madrid"]
    assert task.rewards([rows[i] for i in order], completions) == [1.0, 1.0, 0.0, 2.0, 1.0]
    assert seen == [["Paris", "Oslo", "Madrid"]]
    # The declared range covers every verifier.
    assert task.reward_range == (0.0, 5.0)


def test_undecided_maths_and_code_verdicts_become_none(jsonl, monkeypatch):
    from disa.rewards import code, maths

    class Maths:
        def __init__(self, **settings):
            assert settings == {"pattern": None}

        def check(self, golds, completions):
            assert golds == [maths.Gold("1, 2", multiple=True, unit="km")] * 3
            return [maths.Verdict(text) for text in completions]

    class Code:
        def __init__(self, workers):
            assert workers == 2

        def check(self, programs):
            assert {p.tests.names for p in programs} == {("f",)}
            return [code.CodeVerdict(p.source.strip()) for p in programs]

    monkeypatch.setattr(maths, "MathsVerifier", Maths)
    monkeypatch.setattr(code, "CodeVerifier", Code)
    sums = [{"prompt": "m", "answer": ["1", "2"], "unit": "km"}]
    programs = [{"prompt": "c", "tests": ["assert f(1) == 2"], "solution": "def f(x):\n    return x + 1\n"}]
    task = task_of(
        {"path": jsonl(sums), "verifier": "maths", "use": "train"},
        {"path": jsonl(programs, "c.jsonl"), "verifier": "code", "use": "train"},
    )
    m, c = task.prompts("train")
    assert task.rewards([m] * 3, ["correct", "wrong", "undecided"]) == [1.0, 0.0, None]
    statuses = ["passed", "failed", "timed_out", "crashed", "undecided"]
    assert task.rewards([c] * 5, [f"```python\n{s}\n```" for s in statuses]) == [1.0, 0.0, 0.0, 0.0, None]


def test_there_are_no_modes_and_solutions_are_not_counted(jsonl):
    task = task_of(exact(jsonl(CAPITALS)))
    assert [task.mode(row, "Paris") for row in task.prompts("train")] == [None] * 4


def test_demonstrations_come_from_the_solution_column(jsonl):
    rows = [c | {"solution": f"It is {c['answer']}."} for c in CAPITALS]
    task = task_of(exact(jsonl(rows)))
    rng, first = random.Random(0), task.prompts("train")[0]
    assert task.demonstration(first, rng, noisy=False) == "It is Paris."
    noisy = Counter(task.demonstration(first, rng, noisy=True) for _ in range(200))
    assert set(noisy) == {row["solution"] for row in rows}
    assert set("It is Paris.Capital of France?") <= set(task.alphabet)
    bare = task_of(exact(jsonl(CAPITALS, "bare.jsonl")))
    with pytest.raises(DisaError, match="no worked solution.*give models instead of a warmup section"):
        bare.demonstration(bare.prompts("train")[0], rng, noisy=False)


def test_prompts_of_another_recipe_are_not_judged_by_this_one(jsonl):
    (row, *_) = task_of(exact(jsonl(CAPITALS))).prompts("train")
    other = task_of({"path": jsonl(CAPITALS, "m.jsonl"), "verifier": "maths"})
    with pytest.raises(DisaError, match="no source of this task has verifier exact"):
        other.rewards([row], ["Paris"])


REFUSED = {
    "no origin": ({"verifier": "exact"}, "give benchmark, hub or path"),
    "two origins": ({"hub": "a/b", "path": "c.jsonl", "verifier": "exact"}, "give benchmark, hub or path"),
    "no verifier": ({"path": "c.jsonl"}, "give a verifier"),
    "unknown verifier": ({"path": "c.jsonl", "verifier": "chess"}, "verifier 'chess' is not maths"),
    "unknown benchmark": ({"benchmark": "aime1983"}, "unknown benchmark 'aime1983', there are aime2024"),
    "benchmark and hub": ({"benchmark": "gsm8k", "hub": "a/b"}, "a benchmark names its own hub"),
    "unknown column": ({"path": "c.jsonl", "verifier": "exact", "columns": {"question": "q"}}, "question"),
    "template": ({"path": "c.jsonl", "verifier": "exact", "prompt_template": "hi"}, "prompt_template has no {prompt}"),
    "split": ({"path": "c.jsonl", "verifier": "exact", "use": "test"}, "'heldout'"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_contradictory_sources_are_refused(values, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        SourceConfig(**values)


def test_shares_must_leave_something_to_train_on(jsonl):
    with pytest.raises(ValidationError, match="add up to 1.1"):
        task_of({"path": "c.jsonl", "verifier": "exact"}, heldout_share=0.6, validation_share=0.5)


def test_a_recipe_names_the_field_within_the_source(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    text = """
        run_dir: runs/mine
        models: {reference: model}
        tasks:
          name: dataset
          sources:
            - {benchmark: math500}
            - {path: rows.jsonl, verifier: maths, colums: {}}
    """
    recipe.write_text(textwrap.dedent(text))
    with pytest.raises(DisaError, match="field tasks.sources.1.colums: unknown key"):
        load_recipe(recipe)
    recipe.write_text(textwrap.dedent(text).replace("colums", "columns"))
    loaded = load_recipe(recipe, ["tasks.heldout_prompts=7"])
    assert loaded.tasks.limit("heldout") == 7 and loaded.tasks.limit("train") is None
    recipe.write_text(json.dumps(loaded.model_dump(mode="json")))
    assert load_recipe(recipe) == loaded


def test_programs_are_counted_by_their_syntax_tree_and_maths_answers_have_no_kinds(jsonl):
    row = {"id": 1, "prompt": "Add one.", "solution": "def f(x): return x + 1", "tests": ["assert f(1) == 2"]}
    code = {"path": jsonl([row]), "verifier": "code", "use": "train"}
    task = task_of(code)
    (prompt,) = task.prompts("train")
    one, same, other = (
        task.mode(prompt, f"```python\ndef f({name}):\n    return {text}\n```")
        for name, text in (("x", "x + 1"), ("number", "number + 1"), ("x", "1 + x"))
    )
    assert task.has_modes and one == same != other
    sums = {"path": jsonl([{"prompt": "1+1?", "answer": "2"}], "m.jsonl"), "verifier": "maths", "use": "train"}
    mixed = task_of(code, sums)
    assert not mixed.has_modes and mixed.mode(prompt, "def f(x): return x + 1") is None


def test_solutions_of_gsm8k_are_counted_by_their_steps():
    task = task_of({"benchmark": "gsm8k"}, {"benchmark": "gsm8k_train"})
    assert task.has_modes and not task_of({"benchmark": "gsm8k"}, {"benchmark": "math500"}).has_modes
    payload = json.dumps({"verifier": "maths", "pattern": None, "gold": {"answers": ["7"]}})
    prompt = Prompt("p", "dataset", "train", "q", payload, None)
    assert task.mode(prompt, "3 + 4 = 7, so \\boxed{7}") == task.mode(prompt, "4 + 3 = 7. \\boxed{7}") == "3+4"
