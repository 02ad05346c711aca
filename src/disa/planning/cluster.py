"""What a stated cluster would need for the same work, from published peaks and a stated utilisation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from disa.planning.work import StageWork


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Published figures of one GPU."""

    bfloat16: float
    """Dense tensor-core operations per second in bfloat16."""
    memory: float
    """Bytes."""
    source: str


GPUS = {
    "a100": Gpu(312e12, 80e9, "NVIDIA A100 80GB SXM data sheet"),
    "h100": Gpu(989e12, 80e9, "NVIDIA H100 SXM data sheet, half of the figure given with sparsity"),
    "h200": Gpu(989e12, 141e9, "NVIDIA H200 SXM data sheet, half of the figure given with sparsity"),
}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A number of equal GPUs.

    ``passes`` and ``decoding`` are the shares of the peak that are reached. 0.35 for passes is a little below the 0.38
    to 0.43 that Llama 3 405B reports in bfloat16 (arXiv 2407.21783, section 3.3.2). Drawing token by token is bound by
    memory traffic, and depends on batch and engine more than on anything else: 0.05 is an assumption to be replaced.
    """

    gpu: str
    count: int
    passes: float = 0.35
    decoding: float = 0.05

    def seconds(self, work: StageWork) -> float:
        """``(passes / u_passes + decoding / u_decoding) / (GPUs x peak)``: no communication, no start-up."""
        peak = self.count * GPUS[self.gpu].bfloat16
        return (work.passes / self.passes + work.decoding / self.decoding) / peak

    def per_gpu(self, work: StageWork, over: int | None = None) -> float:
        """Bytes that each GPU holds where ``over`` of them, by default all, share the weights evenly.

        ``weights / over + batch + 2 layer``: a layer is gathered while the one before it computes (Zhao et al. 2023,
        arXiv 2304.11277). With 1 there is nothing to gather.
        """
        over = over or self.count
        return work.weights / over + work.batch + (2 * work.layer if over > 1 else 0)

    def fits(self, work: StageWork) -> Literal["yes", "sharded", "no"]:
        """Whether a GPU holds the stage by itself, as in data-parallel training, or its share of the weights."""
        room = GPUS[self.gpu].memory
        if self.per_gpu(work, 1) <= room:
            return "yes"
        return "sharded" if self.per_gpu(work) <= room else "no"
