"""DISA: post-train language models to match a reward-shaped distribution over solutions.

Decoupled Importance-Sampled Anchoring (arXiv 2605.17295): proposal trajectories are drawn offline,
each prompt's partition function ``Z(x) = E_ref[exp(beta r)]`` is estimated from them and frozen, and
only then is the policy optimised with trajectory balance.

Importing this package is light: what needs torch, transformers or TRL loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from disa.anchor import Anchor
    from disa.calibration.calibrate import calibrate
    from disa.calibration.config import CalibrationConfig
    from disa.errors import DisaError
    from disa.objectives.advantages import advantages
    from disa.partition import (
        LogPartition,
        LogPartitionBatch,
        estimate_log_partition,
        estimate_log_partition_batch,
        sweep_log_partition,
    )
    from disa.training.anchors_own import offline_trajectories
    from disa.training.disa_config import DISAConfig
    from disa.training.offline_trainer import OfflineConfig, OfflineTrainer
    from disa.training.trainer import DISATrainer

_HOMES = {
    "Anchor": "disa.anchor",
    "CalibrationConfig": "disa.calibration.config",
    "DISAConfig": "disa.training.disa_config",
    "DISATrainer": "disa.training.trainer",
    "DisaError": "disa.errors",
    "LogPartition": "disa.partition",
    "LogPartitionBatch": "disa.partition",
    "OfflineConfig": "disa.training.offline_trainer",
    "OfflineTrainer": "disa.training.offline_trainer",
    "advantages": "disa.objectives.advantages",
    "calibrate": "disa.calibration.calibrate",
    "estimate_log_partition": "disa.partition",
    "estimate_log_partition_batch": "disa.partition",
    "offline_trajectories": "disa.training.anchors_own",
    "sweep_log_partition": "disa.partition",
}

__all__ = [
    "Anchor",
    "CalibrationConfig",
    "DISAConfig",
    "DISATrainer",
    "DisaError",
    "LogPartition",
    "LogPartitionBatch",
    "OfflineConfig",
    "OfflineTrainer",
    "__version__",
    "advantages",
    "calibrate",
    "estimate_log_partition",
    "estimate_log_partition_batch",
    "offline_trajectories",
    "sweep_log_partition",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'disa' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
