"""The reward function that verl's reward workers call, on every node: ``beta r(x, y) - log Z(x)``."""

from __future__ import annotations

import functools
import json
import math
import os
import socket
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from disa.errors import DisaError
from disa.runs.records import Prompt
from disa.tasks import Task, TaskSection, make_task
from disa.tasks.checked_rewards import checked_rewards


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    *,
    task: str,
    reward: str,
    anchor: str,
    inverse_temperature: float,
    refusals: str,
    **others: Any,
) -> dict[str, float]:
    """Score of one completion, with what else verl may log of it.

    verl logs an error of a reward worker and trains on without the completion. So an error is also left in a file,
    for the launcher to find when the advantage estimator has missed the completion and stopped the run.

    Parameters
    ----------
    data_source, ground_truth : str
        As verl passes them; the prompt record in ``extra_info`` holds the same.
    solution_str : str
        The completion, special tokens removed.
    extra_info : dict
        A row of :mod:`disa.verl.rows`: the prompt record, ``log_z`` and ``anchor``.
    task : str
        The recipe's ``tasks`` section, as JSON.
    reward, anchor : str
        The anchor's reward fingerprint and the digest of its file, which task and row must agree with.
    inverse_temperature : float
    refusals : str
        Folder for errors, seen by every node.

    Returns
    -------
    dict
        ``score`` = beta r - log Z in nats, which verl trains on; ``acc``, 1 for a correct completion; ``reward``,
        the raw r; ``log_z``. All but ``log_z`` are NaN where the reward is undecided: the loss leaves it out.

    Raises
    ------
    DisaError
        Where the row belongs to another anchor, or this node's task has another reward.
    """
    try:
        return _score(solution_str, extra_info, task, reward, anchor, inverse_temperature)
    except Exception as error:
        Path(refusals).mkdir(parents=True, exist_ok=True)
        said = str(error) if isinstance(error, DisaError) else f"{type(error).__name__}: {error}"
        Path(refusals, f"{socket.gethostname()}-{os.getpid()}.txt").write_text(said, encoding="utf-8")
        raise


def _score(
    solution_str: str, extra_info: dict[str, Any], task: str, reward: str, anchor: str, inverse_temperature: float
) -> dict[str, float]:
    if extra_info["anchor"] != anchor:
        raise DisaError(
            f"the row's log Z comes from anchor {extra_info['anchor']}, training from anchor {anchor}",
            where=f"verl, prompt {extra_info['prompt_id']}",
            fix="start with 'disa verl', which writes the rows anew",
        )
    own = _task(task)
    if own.reward_fingerprint != reward:
        raise DisaError(
            f"this node's reward is {own.reward_fingerprint}, the anchor was estimated for {reward}",
            where="verl, reward worker",
            fix="install the same version of disa on every node",
        )
    [found] = checked_rewards(own, [Prompt.from_row(extra_info)], [solution_str])
    raw = math.nan if found is None else found
    return {
        "score": inverse_temperature * raw - extra_info["log_z"],
        "acc": raw if math.isnan(raw) else float(raw >= 1.0),
        "reward": raw,
        "log_z": extra_info["log_z"],
    }


@functools.lru_cache(maxsize=1)
def _task(section: str) -> Task:
    return make_task(TypeAdapter(TaskSection).validate_python(json.loads(section)))
