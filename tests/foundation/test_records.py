"""Rows survive the disk exactly, and what is not such a row is refused by name."""

import dataclasses
import math

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disa.errors import DisaError
from disa.runs.parquet_rows import StoredRows, arrow_schema, read_rows, write_rows
from disa.runs.records import EvaluationRecord, PartitionEstimate, Prompt, PromptValue, ScoredTrajectory, Trajectory

# The text has a newline, a quote, an emoji and a NUL: completions hold whatever a model writes.
TEXT = 'a "quoted"\nline \U0001f600 \x00 end'
NUMBERS = {"ess": 5.5, "hits_ess": 2.5, "mean_weight": 0.9}
ROWS = {
    Prompt: [
        Prompt("p0", "countdown", "train", TEXT, '{"target": 3}', 4),
        Prompt("p1", "countdown", "heldout", "", "{}", None),
    ],
    Trajectory: [
        Trajectory("p0", 0, "reference", TEXT, [5, 0, 2**31 - 1], False, -1.2345678901234567),
        Trajectory("p0", 1, "proposal", "", [], True, -0.0),
        Trajectory("p0", 2, "proposal", "text", [5], True, None, retokenised=True),
        Trajectory("p0", 3, "reference", "6", [5, 0], True, -1.0, retokenised=True, tool_mask=[1, 0], judged=0.5),
    ],
    ScoredTrajectory: [
        ScoredTrajectory("p0", 0, "reference", TEXT, [5, 6], False, -1e-300, -1e300, -math.inf, 1.0),
        ScoredTrajectory("p0", 1, "proposal", "", [], True, -1.0, -2.0, -3.0, 0.25),
        ScoredTrajectory("p0", 2, "proposal", "text", [5], True, None, -2.0, None, None, retokenised=True),
    ],
    PartitionEstimate: [
        PartitionEstimate(
            *("p0", "train", 0.1 + 0.2, 0.3, 0.0, 2.0, 8, 2, 0.5),
            **NUMBERS, pareto_k=0.7, method="mixture", flags=["gated", "wide"],
        ),
        PartitionEstimate(
            *("p1", "heldout", 0.0, 0.0, 0.0, 1.0, 8, 0, 0.0), **NUMBERS, pareto_k=None, method="is", flags=[]
        ),
    ],
    EvaluationRecord: [
        EvaluationRecord("disa", "countdown", "p0", "heldout", 3, TEXT, 7, False, 1.0, "1+2", -3.0, -4.0),
        EvaluationRecord("served", "countdown", "p0", "heldout", 4, "", None, True, None, None),
    ],
    PromptValue: [PromptValue("disa", "heldout", "p0", "mean@8", 0.1 + 0.2)],
}  # fmt: skip
ROW_TYPES = pytest.mark.parametrize("row_type", list(ROWS), ids=lambda t: t.__name__)


@ROW_TYPES
def test_rows_come_back_exactly_as_they_were_written(row_type, tmp_path):
    write_rows(tmp_path / "rows.parquet", ROWS[row_type], row_type)
    assert read_rows(tmp_path / "rows.parquet", row_type) == ROWS[row_type]


@ROW_TYPES
def test_a_file_without_rows_is_a_file_with_no_rows(row_type, tmp_path):
    write_rows(tmp_path / "rows.parquet", [], row_type)
    assert read_rows(tmp_path / "rows.parquet", row_type) == []


@ROW_TYPES
def test_the_datasets_library_reads_the_same_values(row_type, tmp_path):
    write_rows(tmp_path / "rows.parquet", ROWS[row_type], row_type)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "rows.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    derived = getattr(row_type, "DERIVED", ())
    rows = [dataclasses.asdict(row) | {name: getattr(row, name) for name in derived} for row in ROWS[row_type]]
    assert loaded.to_list() == rows


def test_a_folder_is_read_in_the_order_of_its_file_names_without_files_under_way(tmp_path):
    for key in ("part-000002", "part-000000", "part-000010"):
        write_rows(tmp_path / f"{key}.parquet", [dataclasses.replace(ROWS[Trajectory][0], completion=key)], Trajectory)
    (tmp_path / ".part-000001.parquet.123.tmp").write_bytes(b"half a file")
    (tmp_path / "parity.json").write_text("{}")
    assert [row.completion for row in read_rows(tmp_path, Trajectory)] == ["part-000000", "part-000002", "part-000010"]


def test_writing_leaves_one_whole_file_and_nothing_beside_it(tmp_path):
    write_rows(tmp_path / "rows.parquet", ROWS[Prompt], Prompt)
    write_rows(tmp_path / "rows.parquet", ROWS[Prompt][:1], Prompt)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]
    assert read_rows(tmp_path / "rows.parquet", Prompt) == ROWS[Prompt][:1]


def test_a_row_of_the_wrong_type_is_not_written(tmp_path):
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_rows(tmp_path / "rows.parquet", [dataclasses.replace(ROWS[Trajectory][0], draw="first")], Trajectory)
    assert list(tmp_path.iterdir()) == []


def trajectories_table(**changed):
    """The first example trajectories as a table, columns replaced, without the record's metadata."""
    columns = {f.name: [getattr(r, f.name) for r in ROWS[Trajectory][:2]] for f in dataclasses.fields(Trajectory)}
    return pa.table(columns | changed)


def refusal(path, row_type=Trajectory):
    with pytest.raises(DisaError) as caught:
        read_rows(path, row_type)
    assert str(path) in str(caught.value)
    assert caught.value.fix
    return str(caught.value)


def test_plain_parquet_with_the_right_columns_is_welcome_and_other_columns_are_ignored(tmp_path):
    table = trajectories_table().append_column("note", pa.array(["x", "y"]))
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet", Trajectory) == ROWS[Trajectory][:2]


def test_a_missing_file_is_named(tmp_path):
    assert "file not found" in refusal(tmp_path / "none.parquet")


def test_a_missing_column_is_named_with_those_found(tmp_path):
    pq.write_table(trajectories_table().drop_columns(["log_sampler"]), tmp_path / "rows.parquet")
    message = refusal(tmp_path / "rows.parquet")
    assert "field 'log_sampler' is missing, found prompt_id, draw" in message


@pytest.mark.parametrize(
    ("field", "values", "found", "expected"),
    [
        ("draw", ["first", "second"], "string", "int64"),
        ("log_sampler", ["a", "b"], "string", "double"),
        ("completion_ids", [["a"], ["b"]], "list<", "list<"),
        ("completion_ids", [1, 2], "int64", "list<"),
        ("draw", [0.5, 1.5], "double", "int64"),
    ],
)
def test_a_wrong_type_is_named_with_both_types(field, values, found, expected, tmp_path):
    pq.write_table(trajectories_table(**{field: values}), tmp_path / "rows.parquet")
    message = refusal(tmp_path / "rows.parquet")
    assert f"field '{field}' has type {found}" in message
    assert f"expected {expected}" in message


@pytest.mark.parametrize("field", ["prompt_id", "draw", "completion", "completion_ids", "truncated", "retokenised"])
def test_a_null_is_named_with_its_row(field, tmp_path):
    values = trajectories_table().column(field).to_pylist()
    table = trajectories_table(**{field: pa.array([values[0], None], trajectories_table().column(field).type)})
    pq.write_table(table, tmp_path / "rows.parquet")
    message = refusal(tmp_path / "rows.parquet")
    assert "row 1" in message
    assert f"field '{field}' is null" in message


def test_a_null_inside_a_list_of_tokens_is_refused(tmp_path):
    pq.write_table(trajectories_table(completion_ids=[[1, 2], [3, None]]), tmp_path / "rows.parquet")
    message = refusal(tmp_path / "rows.parquet")
    assert "row 1" in message
    assert "completion_ids" in message


def test_a_nan_is_named_with_its_row(tmp_path):
    pq.write_table(trajectories_table(log_sampler=[-1.0, math.nan]), tmp_path / "rows.parquet")
    message = refusal(tmp_path / "rows.parquet")
    assert "row 1" in message
    assert "field 'log_sampler' is NaN" in message


def test_a_nan_is_refused_where_null_would_be_allowed(tmp_path):
    row = dataclasses.replace(ROWS[PartitionEstimate][0], pareto_k=math.nan)
    write_rows(tmp_path / "rows.parquet", [row], PartitionEstimate)
    assert "field 'pareto_k' is NaN" in refusal(tmp_path / "rows.parquet", PartitionEstimate)


def test_another_record_is_refused_though_its_columns_would_do(tmp_path):
    write_rows(tmp_path / "rows.parquet", ROWS[ScoredTrajectory], ScoredTrajectory)
    message = refusal(tmp_path / "rows.parquet", Trajectory)
    assert "holds ScoredTrajectory rows of version 4, expected Trajectory version 3" in message


def test_another_version_is_refused(tmp_path):
    table = trajectories_table().cast(arrow_schema(Trajectory))
    table = table.replace_schema_metadata({"disa.record": "Trajectory", "disa.version": "0"})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert "Trajectory rows of version 0, expected Trajectory version 3" in refusal(tmp_path / "rows.parquet")


@pytest.mark.parametrize("missing", [["retokenised", "tool_mask", "judged"], ["tool_mask", "judged"]], ids=len)
@pytest.mark.parametrize("row_type", [Trajectory, ScoredTrajectory], ids=lambda t: t.__name__)
def test_an_earlier_version_is_read_where_only_columns_with_a_default_are_missing(row_type, missing, tmp_path):
    path = tmp_path / "rows.parquet"
    known = [row for row in ROWS[row_type] if not row.retokenised]
    write_rows(path, known, row_type)
    table = pq.read_table(path).drop_columns(missing)
    earlier = row_type.READS[len(missing) == 2]
    metadata = {"disa.record": row_type.__name__, "disa.version": str(earlier)}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert read_rows(path, row_type) == known
    pq.write_table(table.replace_schema_metadata(metadata | {"disa.version": str(row_type.VERSION)}), path)
    assert f"field '{missing[0]}' is missing" in refusal(path, row_type)


@pytest.mark.parametrize("keep", [0, 3, 50, -9])
def test_a_truncated_file_is_refused(keep, tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, ROWS[Trajectory], Trajectory)
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a readable Parquet file" in refusal(path)


def test_a_file_damaged_in_its_middle_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, ROWS[Trajectory] * 200, Trajectory)
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(bytes(data))
    assert "not a readable Parquet file" in refusal(path)


def many(path, files=3, rows=300):
    """Files of more than one group of rows each; every completion has tokens of its own."""
    made = []
    for file in range(files):
        part = [
            dataclasses.replace(
                ROWS[Trajectory][0], draw=file * rows + i, completion=f"{file}-{i}", completion_ids=[i] * (i % 5)
            )
            for i in range(rows)
        ]
        write_rows(path / f"part-{file}.parquet", part, Trajectory)
        made += part
    return made


def test_thin_rows_know_their_numbers_of_tokens_and_read_the_ids_when_asked(tmp_path):
    whole = many(tmp_path)
    found = read_rows(tmp_path, Trajectory, thin=True)
    assert {row.completion for row in found} == {""}
    assert [len(row.completion_ids) for row in found] == [len(row.completion_ids) for row in whole]
    for i in (0, 4, 255, 256, 299, 300, 899):
        assert list(found[i].completion_ids) == whole[i].completion_ids
        assert not found[i].completion_ids or found[i].completion_ids[-1] == whole[i].completion_ids[-1]
    thin = [dataclasses.replace(row, completion="", completion_ids=[]) for row in whole]
    assert [dataclasses.replace(row, completion_ids=[]) for row in found] == thin
    write_rows(tmp_path / "again.parquet", found[:5], Trajectory)
    assert [row.completion_ids for row in read_rows(tmp_path / "again.parquet", Trajectory)] == [
        row.completion_ids for row in whole[:5]
    ]


def test_stored_rows_are_a_sequence_that_reads_what_is_looked_at(tmp_path, monkeypatch):
    whole, stored = many(tmp_path), StoredRows(tmp_path, Trajectory)
    assert len(stored) == len(whole) and list(stored) == whole
    for part in (slice(0, 1), slice(250, 620), slice(890, 2000), slice(5, 5)):
        assert stored[part] == whole[part]
    assert stored[-1] == whole[-1] and stored[301] == whole[301]
    assert list(stored.column("draw")) == list(range(900))
    (tmp_path / "part-0.parquet").unlink()
    assert stored[300:900] == whole[300:900]  # the first file is not looked at
    with pytest.raises(DisaError, match="file not found"):
        stored[0]
    assert len(StoredRows([], Trajectory)) == 0


def test_a_bad_value_behind_the_first_group_is_named_by_its_row_in_the_file(tmp_path):
    many(tmp_path, files=1)
    table = pq.read_table(tmp_path / "part-0.parquet")
    values = table.column("log_sampler").to_pylist()
    values[270] = float("nan")
    at = table.column_names.index("log_sampler")
    pq.write_table(
        table.set_column(at, "log_sampler", pa.array(values)), tmp_path / "part-0.parquet", row_group_size=100
    )
    for thin in (False, True):
        with pytest.raises(DisaError, match=r"part-0.parquet, row 270: field 'log_sampler' is NaN"):
            read_rows(tmp_path, Trajectory, thin=thin)


def test_thin_rows_of_a_file_that_was_written_again_read_the_new_ids(tmp_path):
    for ids in ([1, 2], [7, 8, 9]):
        write_rows(tmp_path / "a.parquet", [Trajectory("p0", 0, "reference", "", ids, False, -1.0)], Trajectory)
        (row,) = read_rows(tmp_path, Trajectory, thin=True)
        assert list(row.completion_ids) == ids
