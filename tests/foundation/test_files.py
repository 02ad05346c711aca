"""Files appear whole or not at all, and digests are made without reading a file at once."""

import hashlib
import subprocess
import sys

import pytest

from disa.runs.files import folder_digest, temporary_path, whole_file, whole_folder


def test_two_writers_of_one_file_write_beside_each_other_even_with_equal_process_numbers(tmp_path):
    # Processes on several nodes, above all in containers, often have equal numbers: here it is one process.
    assert temporary_path(tmp_path / "parity.json") != temporary_path(tmp_path / "parity.json")


def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path, "w") as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_an_older_one_only_when_it_is_whole(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "model") as folder:
            folder.mkdir()
            (folder / "weights").write_text(text)
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model") as folder:
        folder.mkdir()
        raise RuntimeError
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_digest_follows_names_and_contents_of_visible_files(tmp_path):
    for folder, files in {
        "a": {"x": "1", "y": "2"},
        "same": {"y": "2", "x": "1", ".cache": "9"},
        "name": {"x": "1", "z": "2"},
        "moved": {"x": "12", "y": ""},
    }.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    a, same, name, moved = (folder_digest(tmp_path / folder) for folder in ("a", "same", "name", "moved"))
    assert a == same
    assert len({a, name, moved}) == 3


def test_the_digest_of_a_large_file_needs_little_memory(tmp_path):
    size = 400 * 2**20
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(size)
    program = """
import resource, sys
from pathlib import Path
from disa.runs.files import file_digest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(file_digest(Path(sys.argv[1])), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "model.safetensors")]
    digest, kilobytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert digest == hashlib.sha256(bytes(size)).hexdigest()
    # Read whole, the file would add its own 409,600; a streamed one adds a buffer.
    assert int(kilobytes) < 20_000
