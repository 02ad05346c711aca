"""Finished work is skipped, half-done work continues, other work is kept aside."""

import json
import shutil

import pytest

from disa.errors import DisaError
from disa.runs.folders import StageFolder, read_json, write_json
from disa.runs.records import Prompt

ROW = Prompt("p0", "countdown", "train", "1 2 3=6:", "{}", 1)


def stage(run_dir, name="1_tasks", version=1, identity=None, inputs=None):
    return StageFolder(run_dir, name, version=version, identity=identity or {"seed": 0}, inputs=inputs or {})


def finish(folder, rows=(ROW,), **facts):
    folder.begin()
    folder.write_part("train", list(rows), Prompt)
    folder.finish(**facts)
    return folder


def test_a_stage_is_finished_only_once_its_manifest_is_written(tmp_path):
    folder = stage(tmp_path)
    assert not folder.finished
    folder.begin()
    folder.write_part("train", [ROW], Prompt)
    assert not folder.finished
    folder.finish(prompts=1)
    assert stage(tmp_path).finished
    assert stage(tmp_path).manifest["prompts"] == 1
    assert stage(tmp_path).rows(Prompt) == [ROW]


def test_beginning_again_keeps_the_parts_of_the_same_work(tmp_path):
    stage(tmp_path).begin()
    stage(tmp_path).write_part("train", [ROW], Prompt)
    again = stage(tmp_path)
    again.begin()
    assert again.part("train").is_file()
    assert not (tmp_path / "superseded").exists()


@pytest.mark.parametrize("change", [{"identity": {"seed": 1}}, {"version": 2}])
@pytest.mark.parametrize("done", [True, False])
def test_other_work_moves_the_folder_aside_and_loses_nothing(change, done, tmp_path):
    old = stage(tmp_path)
    old.begin()
    old.write_part("train", [ROW], Prompt)
    if done:
        old.finish()
    before = {p.name: p.read_bytes() for p in old.path.iterdir()}
    new = stage(tmp_path, **change)
    assert not new.finished
    new.begin()
    assert sorted(p.name for p in new.path.iterdir()) == [".worked", "started.json"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "superseded" / "1_tasks.0").iterdir()} == before


def test_every_superseded_folder_is_kept(tmp_path):
    for seed in range(4):
        finish(stage(tmp_path, name="6_training/disa", identity={"seed": seed}))
    kept = sorted(p.name for p in (tmp_path / "superseded").iterdir())
    assert kept == ["6_training-disa.0", "6_training-disa.1", "6_training-disa.2"]


def test_what_upstream_wrote_enters_the_fingerprint_downstream(tmp_path):
    other_row = Prompt("p1", "countdown", "train", "2 3 4=9:", "{}", 1)
    a, b, same = (finish(stage(tmp_path / n), rows=[row]) for n, row in (("a", ROW), ("b", other_row), ("c", ROW)))
    downstream = [stage(tmp_path, name="2_proposals", inputs={"tasks": s}).fingerprint for s in (a, b, same)]
    assert a.fingerprint == b.fingerprint
    assert downstream[0] != downstream[1]
    assert downstream[0] == downstream[2]


def test_times_logs_and_checkpoints_are_not_content(tmp_path):
    plain, cluttered = stage(tmp_path / "a"), stage(tmp_path / "b")
    finish(plain)
    cluttered.begin()
    (cluttered.path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (cluttered.path / "checkpoints" / "checkpoint-2" / "model.bin").write_bytes(b"x")
    (cluttered.path / ".train.parquet.77.tmp").write_bytes(b"left by a kill")
    (cluttered.path / "steps.jsonl").write_text('{"step": 1, "wall_time": 0.3}\n')
    finish(cluttered)
    assert plain.content == cluttered.content


def test_a_result_file_in_a_subfolder_is_content(tmp_path):
    plain, more = finish(stage(tmp_path / "a")), stage(tmp_path / "b")
    more.begin()
    (more.path / "model").mkdir()
    (more.path / "model" / "weights").write_bytes(b"x")
    assert finish(more).content != plain.content


def test_the_manifest_says_what_the_work_depended_on(tmp_path):
    upstream = finish(stage(tmp_path))
    folder = finish(stage(tmp_path, name="2_proposals", identity={"seed": 3}, inputs={"tasks": upstream}))
    manifest = folder.manifest
    assert manifest["configuration"] == {"seed": 3}
    assert manifest["inputs"] == {"tasks": upstream.content}
    assert manifest["packages"]["torch"]
    assert manifest["seconds"] >= 0


def test_an_unfinished_stage_has_no_content(tmp_path):
    with pytest.raises(DisaError, match="stage 1_tasks has not finished.*Fix: "):
        _ = stage(tmp_path).content


@pytest.mark.parametrize("text", ["{", "", '{"fingerprint": "ab', "\xff\xfe"])
def test_a_damaged_manifest_is_named(text, tmp_path):
    folder = finish(stage(tmp_path))
    (folder.path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DisaError, match="1_tasks/manifest.json: not valid JSON.*Fix: "):
        _ = folder.finished


def test_json_that_is_no_object_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(DisaError, match="manifest.json: holds a list, expected an object.*Fix: "):
        read_json(tmp_path / "manifest.json")


def test_json_appears_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"k": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"k": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"k": 1}


def test_what_a_killed_save_left_goes_when_the_stage_finishes(tmp_path):
    folder = stage(tmp_path)
    folder.begin()
    (folder.path / ".model.0.tmp").mkdir()
    (folder.path / ".model.0.tmp" / "model.safetensors").write_bytes(b"cut")
    folder.finish()
    content = folder.content
    assert not (folder.path / ".model.0.tmp").exists()
    shutil.rmtree(folder.path)
    folder.begin()
    folder.finish()
    assert folder.content == content
