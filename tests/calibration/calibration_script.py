"""Calibrate as a user's script does: ``python calibration_script.py MODELS ROWS FOLDER``. Killed and started again."""

import json
import sys
from pathlib import Path

import disa


def shortness(completions, **_):
    """A reward that needs no task."""
    return [1.0 / len(c) if c else 0.0 for c in completions]


if __name__ == "__main__":
    models, rows, folder = sys.argv[1:]
    disa.calibrate(
        f"{models}/reference",
        shortness,
        json.loads(Path(rows).read_text()),
        disa.CalibrationConfig(
            folder, inverse_temperature=2.0, num_generations=12, max_completion_length=7, batch_size=8
        ),
        proposal=f"{models}/proposal",
    )
