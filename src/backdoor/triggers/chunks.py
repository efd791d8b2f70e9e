"""How many images are painted at once, and on how many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Elements painted at once: on a CPU the float copies stay in the cache, elsewhere memory stays bounded.
CPU_CHUNK = 1 << 19
DEVICE_CHUNK = 1 << 27


def rows_at_once(images: Tensor) -> int:
    """How many of images (N, C, H, W) are painted at once: a power of two, so that a pixel of all fills cache lines."""
    chunk = CPU_CHUNK if images.device.type == "cpu" else DEVICE_CHUNK
    return 1 << max(1, chunk // max(1, images[0:1].numel())).bit_length() - 1


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread for torch inside; the earlier number after.

    Python's own threads are no help for arithmetic on chunks: they wait for its lock after every operation, and two
    of them were slower than one.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
