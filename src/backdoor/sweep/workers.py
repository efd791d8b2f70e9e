"""Worker processes with a device each: calls run side by side, and none that fails or dies stops another."""

from __future__ import annotations

import importlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from backdoor.errors import UserError, check_whole

WORKERS = 2  # without devices
LOOK_S = 1.0  # how often a worker looks whether the process that started it is there


def slots_of(workers: int | None, devices: Sequence[int | str] | None) -> list[str | None]:
    """The device of each worker, None for one that sees all.

    >>> slots_of(None, [0, 1]), slots_of(2, None)
    (['0', '1'], [None, None])

    Raises:
        UserError: more workers than devices, or a number below 1.
    """
    if workers is not None:
        check_whole({"hydra.launcher.workers": workers})
    if devices is None:
        return [None] * (WORKERS if workers is None else workers)
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        raise UserError(f"hydra.launcher.devices={devices}: expected a list of devices, as [0,1]")
    named = [str(device) for device in devices]
    count = len(named) if workers is None else workers
    if count > len(named) or not named:
        raise UserError(
            f"hydra.launcher.workers={count}: more than the devices ({', '.join(named) or 'none'}), each of which "
            "serves one worker; use fewer, or name a device twice for two workers on it: "
            "hydra.launcher.devices=[0,0]"
        )
    return list(named[:count])


def environment_of(slot: str | None, workers: int) -> dict[str, str]:
    """What a worker's environment has besides this process's own, before it starts."""
    added = {} if slot is None else {"CUDA_VISIBLE_DEVICES": slot}
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        added["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    return added


def check_device(slot: str | None) -> None:
    """In a worker: its device is there; `device=auto` would go on without one and say nothing.

    Raises:
        UserError: it is not.
    """
    if slot is None:
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"hydra.launcher.devices: there is no CUDA device {slot} here; leave devices out for the CPU")


def run_all(call: Callable[..., Any], calls: Sequence[tuple[Any, ...]], slots: Sequence[str | None]) -> list[Any]:
    """`call(*arguments)` for each of `calls`, a process a slot; the results, or what was raised, in the order given.

    A process serves one call after the other, so that its imports are paid once. One that dies is replaced, and its
    call counts as failed. All of them end with this process, even if it is killed.
    """
    # Here and not in the threads: two that import its circle of modules side by side can meet half of one.
    importlib.import_module("joblib.externals.loky.process_executor")
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(calls)):
        todo.put(place)
    results: list[Any] = [None] * len(calls)
    used = slots[: len(calls)]
    workers = [Worker(slot, len(used)) for slot in used]

    def serve(worker: Worker) -> None:
        while True:
            try:
                place = todo.get_nowait()
            except queue.Empty:
                return worker.close()
            results[place] = worker.run(call, calls[place])

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C: the workers get it, too, from a terminal, but not from `kill`
        while not todo.empty():
            todo.get_nowait()
        for worker in workers:
            worker.close()
        raise
    return results


class Worker:
    """One process at a time, on one device."""

    def __init__(self, slot: str | None, workers: int) -> None:
        self.slot, self.env = slot, environment_of(slot, workers)
        self.pool: Any = None

    def run(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The result, or the exception."""
        from joblib.externals.loky import ProcessPoolExecutor
        from joblib.externals.loky.process_executor import BrokenProcessPool

        try:
            if self.pool is None:
                watch = {"initializer": end_with, "initargs": (os.getpid(),)}
                self.pool = ProcessPoolExecutor(max_workers=1, env=self.env, timeout=None, **watch)
            return self.pool.submit(on_device, self.slot, call, arguments).result()
        except BrokenProcessPool:
            self.close()
            return RuntimeError("its process died: killed, out of memory, or a crash in native code")
        except BaseException as error:
            return error

    def close(self) -> None:
        """End the process, if there is one."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)


def end_with(parent: int) -> None:
    """From now on this process ends soon after its parent."""
    threading.Thread(target=end_without, args=(parent,), daemon=True).start()


def end_without(parent: int) -> None:
    """End this process if the one that started it is gone: killed, it cannot say so."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)


def on_device(slot: str | None, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """`call`, in a worker whose device is there."""
    check_device(slot)
    return call(*arguments)
