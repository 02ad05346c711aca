"""Time a matrix product in bfloat16 against float32 on this CPU, one thread: what ``precision`` decides about.

Usage: ``python benchmarks/emulated_bfloat16.py``
"""

from __future__ import annotations

import statistics
import time

import torch

SHAPE = (512, 576, 1536)  # tokens, width and inner width of a 135M-parameter model


def seconds(dtype: torch.dtype, turns: int = 11) -> float:
    """Return the median CPU seconds of one product."""
    m, k, n = SHAPE
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    times = []
    for _ in range(turns):
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    torch.set_num_threads(1)
    known = {name: there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name or name == "avx2"}
    print(f"{known}; bfloat16 takes {seconds(torch.bfloat16) / seconds(torch.float32):.1f} times as long as float32")
