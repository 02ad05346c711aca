"""Several processes in one run directory: what they share is made by one of them, alone."""

import contextlib

import pytest

from disa.errors import DisaError
from disa.rundir import claim, exclusive, joint

# Locks belong to open files and not to processes: two in this process conflict like those of two processes.


def test_what_is_ready_is_held_by_many_at_once(tmp_path):
    def never():
        raise AssertionError("nothing to prepare or to wait for")

    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(joint(tmp_path, ready=lambda: True, prepare=never, wait=never))
        with claim(tmp_path) as held:
            assert not held
    with claim(tmp_path) as held:
        assert held


def test_what_is_not_ready_is_prepared_while_nobody_else_is_there(tmp_path):
    made = []

    def prepare():
        with pytest.raises(DisaError), exclusive(tmp_path):
            pass
        with claim(tmp_path) as held:
            assert not held
        made.append(1)

    with joint(tmp_path, ready=lambda: bool(made), prepare=prepare, wait=lambda: made.append("waited")):
        assert made == [1]


def test_who_comes_while_another_prepares_waits_and_then_prepares_nothing(tmp_path):
    made, waits, alone = [], [], contextlib.ExitStack()
    assert alone.enter_context(claim(tmp_path))

    def wait():
        waits.append(1)
        if len(waits) == 2:
            made.append("by the other")
            alone.close()

    with joint(tmp_path, ready=lambda: bool(made), prepare=lambda: made.append("twice"), wait=wait):
        assert (made, waits) == (["by the other"], [1, 1])


def test_who_is_not_ready_waits_for_those_who_work_together(tmp_path):
    made, waits, together = [], [], contextlib.ExitStack()
    together.enter_context(joint(tmp_path, ready=lambda: True, prepare=None, wait=None))

    def wait():
        assert not made
        waits.append(1)
        together.close()

    with joint(tmp_path, ready=lambda: bool(made), prepare=lambda: made.append(1), wait=wait):
        assert (made, waits) == ([1], [1])


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
