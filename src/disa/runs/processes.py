"""Processes of one launch: what ``accelerate launch`` and ``torchrun`` tell each of them by the environment.

Without a launcher there is one process, of rank 0. Light: nothing of torch is loaded before processes have to meet.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from disa.errors import DisaError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


def rank() -> int:
    """Number of this process in its launch: the one of rank 0 speaks and writes where one does it for all."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Processes in this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process on its machine: which accelerator is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def share_of_process(total: int, setting: str) -> int:
    """One process's part of a batch that all processes of the launch make together.

    Raises DisaError where the batch does not divide evenly; ``setting`` is the recipe's name for it.
    """
    if total % count():
        raise DisaError(
            f"{setting} is {total}, which {count()} processes cannot share evenly",
            where=setting,
            fix=f"launch a number of processes that divides it, or make it a multiple of {count()}",
        )
    return total // count()


def refuse_launch(command: str) -> None:
    """Refuse a launch of a command whose processes each look for work of their own.

    Raises DisaError where there are several: they would wait in one training for processes that are at another.
    """
    if count() > 1:
        raise DisaError(
            f"{count()} processes of one launch",
            where=command,
            fix="start it plainly, as often as you like where several may share the work",
        )


def wait_for_all() -> None:
    """Wait until every process of the launch has come here; each must come within the time-out of their group."""
    if count() > 1:
        _state().wait_for_everyone()


def first_says(value: T) -> T:
    """What the process of rank 0 gives for ``value``, in every process of the launch.

    Where that process has to wait for somebody outside the launch, it says so again and again: the others then wait
    with it for as long as it takes, and not for as long as a meeting may take.
    """
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    return broadcast_object_list([value])[0]


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
