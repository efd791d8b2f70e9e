"""Keep freed memory in the process: the C library hands each big tensor back to the kernel and asks for it again."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>: free space at the top of the heap that is kept, and the size from which a block gets pages of its own.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, OWN_PAGES = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Make glibc reuse the pages of activations up to 1 GiB instead of mapping fresh ones for every layer.

    By default an activation of some megabytes is mapped, zeroed by the kernel page by page, and unmapped again,
    which costs a CPU up to 40 % of a forward pass (benchmarks/scoring.py). Does nothing without glibc (macOS,
    Windows, musl), and on a GPU it changes nothing that matters.

    Returns:
        Whether the C library took both settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT)) and bool(mallopt(M_MMAP_THRESHOLD, OWN_PAGES))
