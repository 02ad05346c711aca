"""TRL's table of completions, with residual and log Z of each in place of GRPO's advantage."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from trl.trainer.utils import print_prompt_completions_sample

COLUMNS = ("residual", "log_z")


class CompletionsTable:
    """The newest rows that a trainer drew, in TRL's order; residuals come later and in another order.

    The trainer keeps the other columns, and writes no table itself.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._rows, self._step = trainer, 0, 0

    def open(self, rows: int) -> None:
        """So many rows were drawn, by all processes."""
        self._rows, self._step = rows, self._trainer.state.global_step
        for name in COLUMNS:
            self._trainer._logs["extra"][name].extend([math.nan] * rows)

    def note(self, row: Tensor, drawn: Tensor, residual: Tensor, log_z: Tensor) -> None:
        """Fill in some rows, of all processes; those of earlier generations are left out.

        ``row`` is the place among the rows drawn together, ``drawn`` the step they were drawn at.
        """
        for name, values in zip(COLUMNS, (residual, log_z), strict=True):
            kept = self._trainer._logs["extra"][name]
            first = len(kept) - self._rows
            for i, step, value in zip(row.tolist(), drawn.tolist(), values.tolist(), strict=True):
                if step == self._step and first + i >= 0:
                    kept[first + i] = value

    def write(self) -> None:
        """Print some rows, write all to ``completions/`` of the output folder, and hand them to wandb and trackio."""
        trainer, logs = self._trainer, self._trainer._logs
        if not trainer.accelerator.is_main_process or not logs["prompt"]:
            return
        step, extra = trainer.state.global_step, {name: list(values) for name, values in logs["extra"].items()}
        texts = {name: _texts(list(logs[name])) for name in ("prompt", "completion")}
        print_prompt_completions_sample(
            list(logs["prompt"]),
            list(logs["completion"]),
            logs["rewards"],
            None,
            step,
            trainer.num_completions_to_print,
            extra=extra,
        )
        rewards = {name: list(values) for name, values in logs["rewards"].items()}
        table = pa.table({"step": [step] * len(logs["prompt"]), **texts, **rewards, **extra})
        folder = Path(trainer.args.output_dir) / "completions"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"completions_{step:05d}.parquet")
        if trainer.log_unique_prompts:
            table = table.take(list({str(prompt): i for i, prompt in enumerate(texts["prompt"])}.values()))
        for name in {"wandb", "trackio"} & set(trainer.args.report_to or ()):
            backend = importlib.import_module(name)
            if getattr(backend, "run", True) is not None:
                backend.log({"completions": backend.Table(dataframe=table.to_pandas())})


def _texts(column: list[Any]) -> list[Any]:
    """Messages with more than words in them as JSON: arguments of calls may be of any type."""
    plain = all(isinstance(x, str) or all(m.keys() == {"role", "content"} for m in x) for x in column)
    return column if plain else [json.dumps(x, default=str) for x in column]
