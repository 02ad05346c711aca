"""Estimate each prompt's log Z, with an interval and everything needed to judge it.

Reads ``3_scoring``, writes ``4_partition`` (one PartitionEstimate per prompt). Formula, with soft successes
``s = expm1(beta (r - r_min)) / expm1(beta (r_max - r_min))`` and balance-heuristic weights w::

    q = (sum(g w s) + w_bar / 2) / (N + w_bar),    log Z = beta r_min + log1p(expm1(beta (r_max - r_min)) q)
"""

from disa.partition.estimate import (
    LogPartition,
    LogPartitionBatch,
    estimate_log_partition,
    estimate_log_partition_batch,
)
from disa.partition.sweep import sweep_log_partition

__all__ = [
    "LogPartition",
    "LogPartitionBatch",
    "estimate_log_partition",
    "estimate_log_partition_batch",
    "sweep_log_partition",
]
