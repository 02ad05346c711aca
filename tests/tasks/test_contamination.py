"""A problem that is reported is never trained on, and what was dropped is said pair by pair."""

import json
import random

import pytest

from disa.tasks import make_task
from disa.tasks.dataset_config import DatasetConfig
from disa.tasks.overlap import normalised_problem, overlap_counts, remove_overlaps
from disa.tasks.rows import RowProblem

SAME = {
    "case": ("Find the Sum", "find the sum"),
    "spaces": ("find  the\n sum ", "find the sum"),
    "full stop": ("Find it.", "Find it"),
    "commas and quotes": ('Find "x", then y', "Find x then y"),
    "curly quotes": ("Janet\u2019s ducks", "Janet's ducks"),
    "dollar signs": ("Find $x + 1$.", "Find x+1"),
    "brackets of display style": (r"Find \[x+1\] and \(y\)", "Find $x+1$ and $y$"),
    "LaTeX spaces": (r"$a\,b\;c\!d\ e$", "$a b c d e$"),
    "sized brackets": (r"$\left( 3, 4 \right)$", "$(3,4)$"),
    "display fractions": (r"$\dfrac{1}{2} + \tfrac34$", r"$\frac{1}{2}+\frac34$"),
    "spaces around operators": ("$x^2 - 4 = 0$", "$x^2-4=0$"),
    "compatibility forms": ("\uff11\uff12 \u2212 \uff13", "12 - 3"),
    "no-break space": ("10\u00a0cm", "10 cm"),
}
DIFFERENT = {
    "sign": ("x+1", "x-1"),
    "bracket": ("(a+b)c", "a+bc"),
    "braces": (r"\frac{1}{23}", r"\frac{12}{3}"),
    "decimal point": ("1.5 cm", "15 cm"),
    "digits apart": ("1 2", "12"),
    "tuple": ("(1,2)", "(12)"),
    "factorial": ("5!", "5"),
    "relation": ("x<1", "x>1"),
    "words": ("the sum", "the product"),
    "name that begins like a command": (r"\leftarrow x", r"\arrow x"),
    "underscore": ("a_1", "a1"),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_differences_of_writing_are_none(one, other):
    assert one != other
    assert normalised_problem(one) == normalised_problem(other) != ""


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_differences_of_meaning_stay(one, other):
    assert normalised_problem(one) != normalised_problem(other)


@pytest.mark.parametrize("text", [t for pair in [*SAME.values(), *DIFFERENT.values()] for t in pair])
def test_a_normal_form_is_its_own_normal_form(text):
    assert normalised_problem(normalised_problem(text)) == normalised_problem(text)


def problem(text, row="r", answer="4", source="s", prompt=None):
    gold = {"answers": [answer]}
    return RowProblem(text, prompt or text, row, source, gold, (text, answer), "exact", None, None, kept=True)


def test_what_is_reported_stays_and_training_gives_way():
    splits = {
        "train": [problem("A", "t1"), problem("b.", "t2"), problem("c", "t3"), problem("d", "t4")],
        "heldout": [problem("a", "h1"), problem("B", "h2")],
        "validation": [problem("C", "v1"), problem("b", "v2")],
        "warmup": [problem("d", "w1"), problem("e", "w2")],
    }
    left, found = remove_overlaps(splits)
    assert {s: [p.row_id for p in rows] for s, rows in left.items()} == {
        "heldout": ["h1", "h2"],
        "validation": ["v1"],
        "train": ["t4"],
        "warmup": ["w2"],
    }
    pairs = {(o.split, o.row, o.kept_split, o.kept_row, o.match) for o in found}
    assert pairs == {
        ("validation", "v2", "heldout", "h2", "normalised"),
        ("train", "t1", "heldout", "h1", "normalised"),
        ("train", "t2", "heldout", "h2", "normalised"),
        ("train", "t3", "validation", "v1", "normalised"),
        ("warmup", "w1", "train", "t4", "exact"),
    }
    assert {o.kind for o in found} == {"contamination"} and all(o.dropped for o in found)


def test_the_exact_comparison_drops_only_letter_by_letter_copies():
    splits = {"heldout": [problem("a")], "train": [problem("A", "t1"), problem("a", "t2")]}
    left, found = remove_overlaps(splits, "exact")
    assert [p.row_id for p in left["train"]] == ["t1"]
    assert [(o.row, o.match) for o in found] == [("t2", "exact")]


def test_duplicates_are_dropped_from_training_and_only_true_copies_from_what_is_held_out():
    rows = [problem("a", "1"), problem("a", "2"), problem("A", "3"), problem("a", "4", answer="5")]
    left, found = remove_overlaps({"train": rows, "heldout": []})
    assert [p.row_id for p in left["train"]] == ["1"]
    assert [(o.row, o.kept_row, o.same_gold, o.kind) for o in found] == [
        ("2", "1", True, "duplicate"),
        ("3", "1", True, "duplicate"),
        ("4", "1", False, "duplicate"),
    ]
    left, found = remove_overlaps({"train": [], "heldout": rows})
    assert [p.row_id for p in left["heldout"]] == ["1", "3", "4"]
    assert [(o.row, o.dropped) for o in found] == [("2", True), ("3", False), ("4", False)]
    ids = [p.prompt_id for p in left["heldout"]]
    assert len(set(ids)) == len(ids)


def test_one_problem_under_two_templates_is_found():
    splits = {"heldout": [problem("a", prompt="Q: a")], "train": [problem("a", prompt="Solve a")]}
    left, found = remove_overlaps(splits)
    assert left["train"] == [] and [o.kind for o in found] == ["contamination"]


def test_the_report_counts_by_split_kind_and_match():
    splits = {
        "heldout": [problem("a"), problem("A", "h2")],
        "train": [problem("a", "1"), problem("A.", "2"), problem("z", "3"), problem("z", "4", answer="5")],
    }
    report = overlap_counts(remove_overlaps(splits)[1])
    assert report["counts"] == {
        "heldout": {"duplicate_normalised_kept": 1},
        "train": {"contamination_exact": 1, "contamination_normalised": 1, "duplicate_exact": 1},
    }
    assert (report["dropped"], report["conflicting_gold"]) == (3, 1)


def test_planted_copies_are_all_found_and_nothing_else(tmp_path):
    """200 problems held out, 60 of them hidden in the training file in other writing, 40 repeated within it."""
    rng = random.Random(0)
    heldout = [
        {"id": f"h{i}", "prompt": f"Compute $\\frac{{{i}}}{{7}} + {i * i}$, exactly.", "answer": str(i)}
        for i in range(200)
    ]
    train = [{"id": f"t{i}", "prompt": f"Compute $\\frac{{{i}}}{{9}} - {i}$.", "answer": str(i)} for i in range(300)]

    def disguised(text):
        text = text.replace("\\frac", "\\dfrac").replace("$", rng.choice(["$", " $ "])).replace("exactly.", "Exactly")
        return (
            text.replace(" + ", rng.choice(["+", " +  "]))
            .replace(" - ", rng.choice(["-", " \\, - "]))
            .upper()
            .replace("\\DFRAC", "\\dfrac")
        )

    planted = rng.sample(heldout, 60)
    repeated = rng.sample(train, 40)
    mixed = [*train, *({"id": f"p-{r['id']}", "prompt": disguised(r["prompt"]), "answer": "0"} for r in planted)]
    mixed += [{"id": f"d-{r['id']}", "prompt": disguised(r["prompt"]), "answer": r["answer"]} for r in repeated]
    rng.shuffle(mixed)
    sources = []
    for name, rows, use in (("train", mixed, "train"), ("heldout", heldout, "heldout")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"path": str(path), "verifier": "exact", "use": use})
    task = make_task(DatasetConfig(name="dataset", sources=sources))
    report = task.data_report()
    pairs = json.loads(json.dumps(report.left_out["overlap"]))
    found = {(p["row"], p["kept_row"]) for p in pairs if p["kind"] == "contamination"}
    assert found == {(f"p-{r['id']}", r["id"]) for r in planted}
    twins = {frozenset((p["row"], p["kept_row"])) for p in pairs if p["kind"] == "duplicate"}
    assert twins == {frozenset((f"d-{r['id']}", r["id"])) for r in repeated}
    assert report.facts["overlap"]["dropped"] == 100
    assert len(task.prompts("train")) == 300 and len(task.prompts("heldout")) == 200
