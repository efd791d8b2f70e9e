"""Hydra's launcher plugin for several processes on one machine; the processes are `backdoor.sweep.workers`'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backdoor.sweep.launching import CallsLauncher
from backdoor.sweep.workers import check_device, run_all, slots_of


class JoblibLauncher(CallsLauncher):
    """Several jobs at a time, each worker with a device of its own.

    hydra-joblib-launcher 1.2 (2022) runs with Hydra 1.3, but gives a worker no device, and a worker that dies (a kill,
    no memory) ends its sweep.

    Args:
        workers: processes; None = one a device, or 2 without devices.
        devices: CUDA devices, one for each worker; a device named twice gets two. None = the worker sees all.

    Raises:
        UserError: joblib is not installed, more workers than devices, or a number below 1.
    """

    NAME, NEEDS = "joblib", "joblib"

    def __init__(self, *, workers: int | None = None, devices: Sequence[int | str] | None = None) -> None:
        super().__init__()
        self.slots = slots_of(workers, devices)

    def run_all(self, call: Callable[..., Any], calls: Sequence[tuple[Any, ...]], folder: Path) -> list[Any]:
        """Each call in one of the workers; said once here where no device is, and not by each job."""
        for slot in self.slots:
            check_device(slot)
        return run_all(call, calls, self.slots)
