"""Prompts in the form of verl's data files, each with its frozen log Z."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from disa.anchor import Anchor
from disa.lm.sampling_config import SamplingConfig
from disa.runs.files import whole_file
from disa.runs.folders import read_json
from disa.runs.records import Prompt


def anchor_digest(anchor: Anchor) -> str:
    """Digest of the anchor's file, which :meth:`Anchor.load` has checked."""
    assert anchor.path is not None  # it was read from there
    return read_json(anchor.path / "manifest.json")["anchor"]["digest"]


def write_verl_rows(path: Path, prompts: Sequence[Prompt], anchor: Anchor, sampling: SamplingConfig) -> None:
    """Write one Parquet file: messages, the payload as verl's ground truth, and in ``extra_info`` what scores a row.

    Raises
    ------
    DisaError
        Where a prompt has no log Z.
    """
    digest = anchor_digest(anchor)
    log_z = anchor.log_z([prompt.prompt_id for prompt in prompts])
    rows = [
        {
            "data_source": f"disa/{prompt.task}",
            "prompt": sampling.trainer_prompt(prompt.prompt),
            "reward_model": {"style": "rule", "ground_truth": prompt.payload},
            "extra_info": {
                "index": index,
                "log_z": float(log_z[index]),
                "anchor": digest,
                **prompt.as_row(),
            },
        }
        for index, prompt in enumerate(prompts)
    ]
    with whole_file(path) as file:
        pq.write_table(pa.Table.from_pylist(rows), file)
