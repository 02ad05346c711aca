"""Trajectories that are in files already: JSONL or Parquet, with or without token ids and log-probabilities.

A row has ``prompt_id`` or ``prompt``, and ``completion``; it may have ``completion_ids`` (token ids, the stop token
included unless truncated), ``log_prob`` (of the whole completion under the model that wrote it, nats) and
``truncated``. Ids that the reference's tokenizer does not turn back into the text belong to another tokenizer: the
text is then tokenised by the reference's, its trajectory marked, and its weight one between texts instead of token
sequences.

Rows of a ``2_proposals`` or ``3_scoring`` folder are taken as they are: their log-probability is ``log_sampler``,
``retokenised`` keeps its mark, and what the reference drew is left out, for it is no draw of the proposal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from disa.errors import DisaError
from disa.lm.sampler import Draw
from disa.lm.sampling_config import SamplingConfig, decode_completion
from disa.proposals.protocol import Job
from disa.runs.files import file_digest
from disa.runs.foreign_rows import foreign_rows
from disa.runs.records import Prompt

VERSION = 2
"""Raised whenever the same files give other trajectories; 2: rows of this package's own folders."""

_FIELDS: dict[str, tuple[type, ...]] = {
    "prompt_id": (str,),
    "prompt": (str,),
    "completion": (str,),
    "completion_ids": (list,),
    "log_prob": (float, int),
    "log_sampler": (float, int),
    "truncated": (bool,),
    "retokenised": (bool,),
}


class ImportedTrajectories:
    """The proposal's trajectories, in the order of their files.

    Raises DisaError where a file cannot be read, a row is no completion that the sampling law can write, or no row
    belongs to a prompt of the run. Rows of other prompts than the run's are left out and counted.
    """

    def __init__(
        self,
        files: Sequence[str],
        prompts: list[Prompt],
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        stops: Sequence[int],
    ) -> None:
        known = {p.prompt_id: p.prompt_id for p in prompts} | {p.prompt: p.prompt_id for p in prompts}
        self._draws: dict[str, list[Draw]] = {p.prompt_id: [] for p in prompts}
        self.left_out = 0
        """Rows of prompts that the run does not have, and draws of the reference."""
        for where, found in (row for file in files for row in foreign_rows(Path(file))):
            row = _checked(found, where)
            prompt_id = known.get(row["prompt_id"] or row["prompt"])
            if prompt_id is None or row["of_the_reference"]:
                self.left_out += 1
            else:
                self._draws[prompt_id].append(_draw(row, tokenizer, sampling, stops, where))
        if not any(self._draws.values()):
            raise DisaError(
                f"none of {self.left_out} rows is the proposal's and belongs to a prompt of this run",
                where=", ".join(files),
                fix="give each row the prompt_id or the prompt of a row in 1_tasks; rows whose source is the reference "
                "do not count",
            )

    def count(self, prompt_id: str) -> int:
        """Number of trajectories of a prompt."""
        return len(self._draws[prompt_id])

    def draw(self, jobs: Sequence[Job]) -> list[Draw]:
        """Look the trajectories up by prompt and number."""
        return [self._draws[job.prompt_id][job.draw] for job in jobs]

    def close(self) -> None:
        """Nothing to free: the rows stay."""


def files_digest(files: Sequence[str]) -> list[str]:
    """Digest of every file's content: what is imported is part of what a run depends on.

    Raises DisaError where a file is missing.
    """
    if missing := [file for file in files if not Path(file).is_file()]:
        raise DisaError("file not found", where=missing[0], fix="correct proposals.files")
    return [file_digest(Path(file)) for file in files]


def text_draw(
    tokenizer: Tokenizer, text: str, sampling: SamplingConfig, *, truncated: bool, log_prob: float | None, where: str
) -> Draw:
    """A completion of which only the text is known, in the reference's tokens.

    Raises DisaError where the law could not have written it: longer than the limit, or cut and in these tokens not at
    the limit.
    """
    ids = text_ids(tokenizer, text, sampling, truncated=truncated, where=where)
    _check_length(ids, sampling, where)
    return Draw(ids, truncated, log_prob, retokenised=True)


def text_ids(tokenizer: Tokenizer, text: str, sampling: SamplingConfig, *, truncated: bool, where: str) -> list[int]:
    """Tokens of a text, the end of text behind them unless it was cut.

    Raises DisaError where it was cut and in these tokens does not reach the limit.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if truncated and len(ids) < sampling.max_completion_length:
        raise DisaError(
            f"the text was cut, and it has {len(ids)} tokens where the limit is {sampling.max_completion_length}",
            where=where,
            fix="draw with a limit that no text reaches; leaving cut ones out would bias what is estimated",
        )
    return ids if truncated else [*ids, tokenizer.eos_token_id]


def _draw(
    row: dict[str, Any], tokenizer: Tokenizer, sampling: SamplingConfig, stops: Sequence[int], where: str
) -> Draw:
    text, ids, truncated = row["completion"], row["completion_ids"], bool(row["truncated"])
    log_prob = _log_prob(row, where)
    if ids is None or row["retokenised"] or not _writes(tokenizer, ids, text):
        return text_draw(tokenizer, text, sampling, truncated=truncated, log_prob=log_prob, where=where)
    _check_length(ids, sampling, where)
    ends = [i for i, token in enumerate(ids) if token in stops]
    expected = [] if truncated else [len(ids) - 1]
    if ends != expected or (truncated and len(ids) != sampling.max_completion_length):
        raise DisaError(
            f"truncated is {str(truncated).lower()}, and of {len(ids)} completion_ids those at {ends} are stop tokens",
            where=where,
            fix="end completion_ids with their only stop token, or, where truncated, at "
            f"sampling.max_completion_length {sampling.max_completion_length} without one",
        )
    return Draw(list(ids), truncated, log_prob)


def _log_prob(row: dict[str, Any], where: str) -> float | None:
    found = {name: row[name] for name in ("log_prob", "log_sampler") if row[name] is not None}
    for name, value in found.items():
        if not (math.isfinite(value) and value <= 0):
            fix = "give the natural logarithm of the completion's probability, or leave the field out"
            raise DisaError(f"{name} is {value}, expected a number up to 0", where=where, fix=fix)
    if len(set(found.values())) > 1:
        problem = f"log_prob is {row['log_prob']} and log_sampler {row['log_sampler']}, expected the same number"
        raise DisaError(problem, where=where, fix="leave one of them out")
    return next(iter(found.values()), None)


def _writes(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> bool:
    return all(0 <= token < len(tokenizer) for token in ids) and decode_completion(tokenizer, list(ids)) == text


def _check_length(ids: Sequence[int], sampling: SamplingConfig, where: str) -> None:
    if len(ids) > sampling.max_completion_length:
        raise DisaError(
            f"{len(ids)} tokens, the stop token included, and the limit is {sampling.max_completion_length}",
            where=where,
            fix="raise sampling.max_completion_length to what the trajectories were drawn with",
        )


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Known fields of a row, None where they are missing."""
    values = {name: row.get(name) for name in _FIELDS}
    for name, value in values.items():
        if value is not None and not _fits(name, value):
            expected = "list of token ids" if name == "completion_ids" else _FIELDS[name][0].__name__
            problem = f"expected {expected}, found {value!r}"[:200]
            raise DisaError(problem, where=f"{where}, field {name}", fix="correct it")
    if values["completion"] is None or (values["prompt_id"] or values["prompt"]) is None:
        fix = "give every row prompt_id or prompt, and completion"
        raise DisaError(f"fields are missing, found {', '.join(row)}", where=where, fix=fix)
    if row.get("tool_mask") is not None:
        problem = "tools or an environment wrote some of its tokens (tool_mask), which an import does not know of"
        raise DisaError(problem, where=where, fix="import trajectories that the model wrote alone")
    # Elsewhere a column of this name may mean anything.
    values["of_the_reference"] = "log_sampler" in row and row.get("source") == "reference"
    return values


def _fits(name: str, value: Any) -> bool:
    if name == "completion_ids":
        return isinstance(value, list) and all(type(token) is int for token in value)
    return type(value) in _FIELDS[name]
