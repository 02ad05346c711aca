"""Calls of ``disa.calibrate`` for processes that are killed: what they need is imported before they are forked."""

import json
from pathlib import Path

import tool_toy as toy

import disa


def shortness(completions, **_):
    """A reward that needs no task."""
    return [1.0 / len(c) if c else 0.0 for c in completions]


def nothing():
    """Starts the server that forks."""


def plain(models, rows, folder):
    """Reference and proposal draw; three parts each."""
    args = disa.CalibrationConfig(
        str(folder), inverse_temperature=2.0, num_generations=4, max_completion_length=7, batch_size=8
    )
    rows = json.loads(Path(rows).read_text())
    disa.calibrate(f"{models}/reference", shortness, rows, args, proposal=f"{models}/proposal")


def with_tool(models, rows, folder):
    """The model calls a tool; batches of 32 draws, whose random numbers hang together."""
    toy.register()
    args = disa.CalibrationConfig(str(folder), num_generations=4, max_completion_length=toy.LIMIT, batch_size=32)
    rows = json.loads(Path(rows).read_text())
    given = {"processing_class": toy.tokenizer(), "tools": [toy.ask]}
    disa.calibrate(str(models), toy.reward, rows, args, **given)
