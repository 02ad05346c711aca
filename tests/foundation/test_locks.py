"""Several processes in one run directory: who may come in beside whom, and that a lock ends with its holder."""

import contextlib
import subprocess
import sys

import pytest

from disa.errors import DisaError
from disa.runs.locks import RunDirectoryBusy, claim, exclusive, shared

# Locks belong to open files and not to processes: two in this process conflict like those of two processes.


def test_processes_that_do_the_same_hold_a_run_together_and_keep_others_out(tmp_path):
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(shared(tmp_path, "this"))
        with pytest.raises(RunDirectoryBusy), exclusive(tmp_path):
            pass
        with pytest.raises(RunDirectoryBusy, match="with other settings"), shared(tmp_path, "that"):
            pass
        with claim(tmp_path) as held:
            assert not held
    # The last one has gone.
    with shared(tmp_path, "that"), pytest.raises(RunDirectoryBusy), shared(tmp_path, "this"):
        pass


def test_who_would_share_is_refused_where_one_works_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("disa.runs.locks.time.sleep", lambda seconds: None)
    with exclusive(tmp_path), pytest.raises(RunDirectoryBusy), shared(tmp_path, "this"):
        pass


def test_a_claim_ends_with_its_block_also_by_an_error(tmp_path):
    with pytest.raises(RuntimeError), claim(tmp_path / "a") as held:
        assert held
        raise RuntimeError
    with claim(tmp_path / "a") as held:
        assert held


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DisaError, match="cannot make the run directory"), claim(tmp_path / "file" / "run"):
        pass


_HOLDER = """
import sys, time
from pathlib import Path
from disa.runs.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_while_the_first_works_and_a_kill_frees_the_run(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(DisaError, match="another disa process is working.*Fix: "), exclusive(tmp_path / "run"):
                pass
        finally:
            holder.kill()
            holder.wait()
    with exclusive(tmp_path / "run"):
        pass


def test_the_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), exclusive(tmp_path):
        raise RuntimeError
    with exclusive(tmp_path):
        pass


def test_a_run_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DisaError, match="run.*Fix: "), exclusive(tmp_path / "run"):
        pass
