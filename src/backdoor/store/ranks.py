"""The processes of one job (`trainer=ddp`): which of them this is, and what they tell one another.

In a job of one process all of it does nothing.
"""

from __future__ import annotations

import sys
from typing import TypeVar

T = TypeVar("T")


def world() -> int:
    """How many processes the job has; 1 outside of `backdoor.experiment.ddp`."""
    # `backdoor.store.store` asks, and shall not wait for torch; a process without torch is alone.
    dist = sys.modules.get("torch.distributed")
    return dist.get_world_size() if dist and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0; rank 0 alone writes."""
    return sys.modules["torch.distributed"].get_rank() if world() > 1 else 0


def share(value: T) -> T:
    """Rank 0's `value` on every rank, which all must ask; what others give does not count."""
    box = [value]
    if world() > 1:
        sys.modules["torch.distributed"].broadcast_object_list(box, src=0)
    return box[0]


def wait_for_all() -> None:
    """Go on once every rank has come here."""
    if world() > 1:
        sys.modules["torch.distributed"].barrier()
