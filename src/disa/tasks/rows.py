"""From a raw row to a problem: its text, and what a completion is judged by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from disa.tasks.benchmarks import BENCHMARKS, BOXED
from disa.tasks.sources import RawRow, label_of

if TYPE_CHECKING:
    from disa.tasks.dataset_config import SourceConfig

_WORKED = "####"
"""What GSM8K and its copies put in front of the answer in a worked solution."""
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")


@dataclasses.dataclass(frozen=True)
class RowProblem:
    """One row, read."""

    text: str
    """The problem itself, by which duplicates are found."""
    prompt: str
    """What the model is shown."""
    row_id: str
    source: str
    gold: dict[str, Any]
    """What the verifier needs, as JSON values."""
    canonical: tuple[str, ...]
    """The problem and what it is judged by, as texts: a row of :func:`disa.tasks.benchmarks.rows_digest`."""
    verifier: str
    pattern: str | None
    """Where the answer stands in a completion, None for the verifier's own rule."""
    solution: str | None
    """A worked solution, where the data has one."""
    kept: bool
    """Whether it is one of the rows that the source keeps."""

    @property
    def prompt_id(self) -> str:
        """Identity of what is asked and of what counts as right: one text with other tests is another problem."""
        judged_by = [self.verifier, self.pattern, *self.canonical[1:]]
        return hashlib.sha256(json.dumps([self.prompt, judged_by]).encode()).hexdigest()[:16]


def read_problem(source: SourceConfig, row: RawRow) -> RowProblem:
    """A row under its source's mapping.

    Raises DisaError naming source, row and field, where something needed is missing or of the wrong kind.
    """
    entry = BENCHMARKS.get(source.benchmark or "")
    columns = (entry.columns if entry else {}) | source.columns
    verifier = source.verifier or (entry.verifier if entry else "")
    if verifier == "code":
        text, gold = _code(row, columns)
    elif ":" in verifier:
        # A custom reward reads the columns it wants, by their own names.
        text, gold = _problem(row, columns), {"columns": _json_values(row)}
    else:
        text, gold = _problem(row, columns), _answers(source, row, columns)
    template = source.prompt_template or (entry.prompt_template if entry else _default_template(source))
    shown_tests = "\n".join(gold["tests"]) if isinstance(gold.get("tests"), list) else ""
    # The tests first: a problem that happens to say {tests} stays as it is.
    prompt = source.few_shot + template.replace("{tests}", shown_tests).replace("{prompt}", text)
    row_id = row.get(columns.get("id", "id"))
    # Of a column named solution that is mapped to something else it holds none.
    solution = row.get(columns.get("solution", "" if "solution" in columns.values() else "solution"))
    return RowProblem(
        text=text,
        prompt=prompt,
        row_id=str(row.index if row_id is None else row_id),
        source=label_of(source),
        gold=gold,
        canonical=(text, *_texts(gold)),
        verifier=verifier,
        pattern=source.answer_pattern,
        solution=solution if isinstance(solution, str) and solution.strip() else None,
        kept=all(row.need(column, "keep") in values for column, values in source.keep.items()),
    )


def _default_template(source: SourceConfig) -> str:
    """Rows without a template of their own: maths answers are looked for in a box, so the prompt asks for one."""
    return BOXED if source.verifier == "maths" and source.answer_pattern is None else "{prompt}"


def _problem(row: RawRow, columns: dict[str, str]) -> str:
    text = _text(row, columns.get("prompt", "prompt"), "prompt")
    context = row.get(columns.get("context", "context"))
    return f"{context}\n\n{text}" if isinstance(context, str) and context.strip() else text


def _answers(source: SourceConfig, row: RawRow, columns: dict[str, str]) -> dict[str, Any]:
    """Gold answers, with OlympiadBench's ``multiple``, ``unit`` and ``error`` where the row has them."""
    value = row.need(columns.get("answer", "answer"), "answer")
    answers = [_answer(row, part) for part in (value if isinstance(value, list) else [value])]
    marker = source.answer_after
    if marker is None:
        marker = BENCHMARKS[source.benchmark].answer_after if source.benchmark else ""
    if not marker and source.verifier == "maths" and any(_WORKED in answer for answer in answers):
        problem = (
            f"column {columns.get('answer', 'answer')!r} holds a worked solution, and its answer follows {_WORKED}"
        )
        raise row.error("answer", problem, fix=f"set answer_after: '{_WORKED}'")
    if marker:
        answers = [_after(row, answer, marker) for answer in answers]
    gold: dict[str, Any] = {"answers": answers}
    for field in ("multiple", "unit", "error"):
        extra = row.get(columns.get(field, field))
        if extra:
            gold[field] = extra if isinstance(extra, bool) else str(extra)
    return gold


def _text(row: RawRow, column: str, field: str) -> str:
    value = row.need(column, field)
    if not isinstance(value, str):
        raise row.error(
            field,
            f"column {column!r} holds a {type(value).__name__}, expected text",
            fix=f"name the text within it, such as {field}: {column}.0.content",
        )
    return value


def _answer(row: RawRow, value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise row.error("answer", f"{value!r} is no answer", fix="give text or a number, or a list of them")
    # Integers stored as floats: 27.0 is the answer 27.
    return str(int(value)) if float(value).is_integer() else repr(value)


def _after(row: RawRow, answer: str, marker: str) -> str:
    _, found, rest = answer.rpartition(marker)
    if not found or not rest.strip():
        raise row.error(
            "answer",
            f"nothing follows {marker!r} in {answer[-60:]!r}",
            fix="set answer_after: '' where the column holds the answer alone, or name another column",
        )
    rest = rest.strip()
    return rest.replace(",", "") if _THOUSANDS.fullmatch(rest) else rest


def _code(row: RawRow, columns: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Problem and tests, in the form the row has them: HumanEval, HumanEval+, LiveCodeBench, assertions, or in/out."""
    if row.get("question_content") is not None:
        return _live_code_bench(row)
    text = _text(row, columns.get("prompt", "prompt"), "prompt")
    if row.get("plus_input") is not None:
        fields = ("prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
        gold = {name: row.need(name, name) for name in fields}
        # Inputs are JSON within JSON in the published file, and HumanEval+ itself reads Infinity and NaN in them.
        gold |= {name: json.loads(v) for name, v in gold.items() if name.endswith("_input") and isinstance(v, str)}
        return text, {"kind": "humaneval_plus"} | gold | {"atol": float(gold["atol"])}
    entry_point = row.get(columns.get("entry_point", "entry_point"))
    if isinstance(row.get("test"), str) and entry_point:
        return text, {"kind": "humaneval", "prompt": text, "entry_point": entry_point, "test": row.get("test")}
    tests = row.need(columns.get("tests", "tests"), "tests")
    if isinstance(tests, list) and all(isinstance(test, str) for test in tests):
        setup = row.get(columns.get("setup", "setup")) or []
        reference = _text(row, columns.get("solution", "solution"), "solution")
        return text, {
            "kind": "assertions",
            "tests": tests,
            "test_imports": [setup] if isinstance(setup, str) else list(setup),
            "code": reference,
        }
    if isinstance(tests, list) and all(isinstance(t, dict) and {"input", "output"} <= set(t) for t in tests):
        cases = [[str(test["input"]), str(test["output"])] for test in tests]
        return text, {"kind": "stdio", "cases": cases}
    raise row.error(
        "tests",
        f"found {str(tests)[:60]!r}",
        fix="give a list of assertions, or a list of objects with input and output",
    )


def _live_code_bench(row: RawRow) -> tuple[str, dict[str, Any]]:
    """Tests stay packed as they are published, and are unpacked when a program is judged: they fill gigabytes."""
    text = _text(row, "question_content", "prompt")
    starter = row.get("starter_code")
    text += f"\n\nStarter code:\n{starter}" if starter else "\n\nRead from standard input, write to standard output."
    metadata = row.get("metadata")
    metadata = json.loads(metadata) if isinstance(metadata, str) else metadata or {}
    return text, {
        "kind": "live_code_bench",
        "public_test_cases": row.need("public_test_cases", "tests"),
        "private_test_cases": row.get("private_test_cases") or "[]",
        "function": metadata.get("func_name"),
    }


def _texts(gold: dict[str, Any]) -> list[str]:
    """A gold's values as texts."""
    values = [value for _, value in sorted(gold.items())]
    return [value if isinstance(value, str) else json.dumps(value, sort_keys=True) for value in values]


def _json_values(row: RawRow) -> dict[str, Any]:
    """Every column, for a custom reward; those that JSON cannot hold are left out."""
    kept = {}
    for name, value in row.values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        kept[name] = value
    return kept
