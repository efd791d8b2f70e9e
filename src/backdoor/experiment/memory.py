"""The most memory that a job held: of the process, and of each GPU it used."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch


def restart_peaks() -> None:
    """Forget the peaks of earlier jobs of this process (the basic launcher runs a sweep in one)."""
    # Linux alone can do it for RAM; elsewhere the peak is that of the whole process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    for device in _devices():
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory() -> dict[str, int]:
    """Peaks since `restart_peaks`.

    Returns:
        `ram`, except on Windows: bytes resident in this process (not those of a data loader's or a launcher's other
        processes); and
        `gpu`, if a GPU was used: bytes of tensors on the fullest one.
    """
    peaks = {}
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["ram"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    held = [torch.cuda.max_memory_allocated(device) for device in _devices()]
    return peaks | ({"gpu": max(held)} if any(held) else {})


def total_memory() -> int | None:
    """Bytes that this machine, or the container, has; None where the system does not say."""
    found = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):  # "max": no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)


def _devices() -> range:
    """The GPUs; none if CUDA was not started, which asking would do."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
