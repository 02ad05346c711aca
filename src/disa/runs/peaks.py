"""The most memory that this process has held, of the machine and of its accelerator."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

KINDS = ("peak_memory", "peak_cuda_memory")
"""Bytes of the process's pages in memory, those of mapped files included, and of tensors on its CUDA device."""

_PROC = Path("/proc/self")


def _cuda() -> Any:
    """CUDA of the torch that is loaded, None where there is none or nothing has used it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def forget_peaks() -> None:
    """From here on peaks are those of what follows; where Linux does not allow it, they stay those of the process."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        pass
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def peaks() -> dict[str, int]:
    """Peaks by kind, those that are known: none of the machine's beside Linux."""
    found = {}
    try:
        if known := re.search(r"VmHWM:\s+(\d+) kB", (_PROC / "status").read_text()):
            found[KINDS[0]] = 1024 * int(known[1])
    except OSError:
        pass
    if cuda := _cuda():
        found[KINDS[1]] = cuda.max_memory_allocated()
    return found
