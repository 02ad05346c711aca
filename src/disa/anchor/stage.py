"""The anchor stage: the estimates, frozen with their fingerprint."""

from __future__ import annotations

from collections.abc import Callable

from disa.anchor.frozen_files import VERSION, freeze
from disa.anchor.probes import Probe
from disa.lm.sampling_config import SamplingConfig
from disa.runs.folders import StageFolder
from disa.runs.provenance import Fingerprint
from disa.runs.records import PartitionEstimate
from disa.runs.stage import Stage
from disa.tasks import Task


def anchor_stage(
    partition: StageFolder,
    task: Task,
    sampling: SamplingConfig,
    fingerprint: Callable[[], Fingerprint],
    probes: Callable[[], list[Probe]],
    probe_bound: Callable[[], float],
) -> Stage:
    """Describe the stage that freezes the partition stage's estimates, with what a trainer can try itself on."""

    def work(stage: StageFolder) -> None:
        found = partition.manifest
        facts = freeze(
            stage.path,
            partition.rows(PartitionEstimate),
            fingerprint(),
            reward_range=task.reward_range,
            binary=found["binary"],
            probes=probes(),
            probe_bound=probe_bound(),
            evidence={name: found.get(name) for name in ("null_test", "coverage", "regressor", "budget")},
            key_columns=task.key_columns,
            chat_template_kwargs=sampling.chat_template_kwargs,
            regressor=partition.path / "regressor.npz" if found["regressor"] else None,
        )
        stage.finish(anchor=facts)

    return Stage("anchor", "5_anchor", VERSION, {}, {"partition": partition}, work)
