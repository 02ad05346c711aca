"""The rows a trainer with a log Z is given: every prompt known beforehand, enough of them, all of one form."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from disa.errors import DisaError
from disa.tasks.python_rows import prompt_key
from disa.tasks.tools import EMPTY_PROMPT

_DATA = "train_dataset or eval_dataset"


def check_dataset(dataset: Any, name: str, *, speaks_first: bool = False) -> Dataset:
    """Rows as a data set: a list of rows is made one. Prompts may be missing where an environment speaks first.

    Raises DisaError for rows that stream, several data sets where one is expected, none, or nothing.
    """
    if isinstance(dataset, list) and dataset and isinstance(dataset[0], dict):
        dataset = Dataset.from_list(dataset)
    if not isinstance(dataset, Dataset):
        raise DisaError(
            f"{name} is {type(dataset).__name__}, expected a datasets.Dataset or a list of rows, all known before "
            "training",
            where=name,
            fix="give one split (dataset['train']), or Dataset.from_list(list(rows)); where reset makes the prompts, "
            "rows of what it makes them from, such as a seed, as log Z belongs to a prompt",
        )
    if not len(dataset):
        raise DisaError(f"{name} has no rows, expected at least one", where=name, fix="give the run's prompts")
    if "prompt" not in dataset.column_names:
        if not speaks_first:
            raise _missing("prompt", dataset, name)
        dataset = dataset.add_column("prompt", [EMPTY_PROMPT] * len(dataset))
    return dataset


def check_datasets(train: Any, evaluation: Any, *, speaks_first: bool = False) -> tuple[Dataset, Any, list[Dataset]]:
    """Training rows, evaluation rows (None, one data set, or several by name), and all of them."""
    check = functools.partial(check_dataset, speaks_first=speaks_first)
    train = check(train, "train_dataset")
    if isinstance(evaluation, dict):
        evaluation = {name: check(rows, f"eval_dataset[{name!r}]") for name, rows in evaluation.items()}
        return train, evaluation, [train, *evaluation.values()]
    if evaluation is None:
        return train, None, [train]
    evaluation = check(evaluation, "eval_dataset")
    return train, evaluation, [train, evaluation]


def with_prompt_ids(dataset: Dataset, key_columns: Sequence[str]) -> Dataset:
    """Rows with the id that :func:`disa.calibrate` gave their prompt.

    Raises DisaError where a column is missing, or the data set has a column ``prompt_id`` of its own.
    """
    if "prompt_id" in dataset.column_names:
        raise DisaError(
            "the column prompt_id is the data set's own, expected none: ids are made of the prompt and "
            f"{', '.join(key_columns) or 'nothing else'}",
            where=_DATA,
            fix="rename the column, here and for disa.calibrate",
        )
    return dataset.add_column("prompt_id", [prompt_key(row, key_columns) for row in dataset])


def check_columns(datasets: Sequence[Dataset]) -> None:
    """Refuse rows that an anchor cannot find its log Z by."""
    for dataset in datasets:
        for column in ("prompt", "prompt_id", "task"):
            if column not in dataset.column_names:
                raise _missing(column, dataset, _DATA)


def check_prompts(datasets: Sequence[Dataset]) -> None:
    """Refuse prompts that differ in more than the question: a fingerprint describes one form, and log Z belongs to it.

    Raises DisaError where an id is no text, or a prompt has other messages than a question and perhaps a system prompt
    before it, or another form or system prompt than the first one.
    """
    first = None
    fix = "build all rows by disa.training.run.prompt_rows(prompts, task, sampling)"
    for prompt_id, prompt in (row for d in datasets for row in zip(d["prompt_id"], d["prompt"], strict=True)):
        if not isinstance(prompt_id, str):
            problem = f"prompt_id is {prompt_id!r}, expected text, as in the anchor"
            raise DisaError(problem, where=_DATA, fix="give the prompt_id of the run's 1_tasks")
        roles = [] if isinstance(prompt, str) else [message["role"] for message in prompt]
        if roles not in ([], ["user"], ["system", "user"]):
            found = f"prompt {prompt_id} has messages of {', '.join(roles)}"
            raise DisaError(f"{found}, expected one of user, and one of system at most before it", where=_DATA, fix=fix)
        system = repr(prompt[0]["content"]) if roles[:1] == ["system"] else "none"
        form = f"messages with system prompt {system}" if roles else "text"
        first = first or form
        if form != first:
            raise DisaError(f"prompt {prompt_id} is {form}, expected {first} as before it", where=_DATA, fix=fix)


def _missing(column: str, dataset: Dataset, where: str) -> DisaError:
    return DisaError(
        f"column '{column}' is missing, found {', '.join(dataset.column_names)}",
        where=where,
        fix="build rows from the run's 1_tasks prompts; prompt_id is how a row finds its log Z",
    )
