"""Hydra's launcher plugin for a Ray cluster: fractions of GPUs, several machines."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import backdoor
from backdoor.errors import UserError
from backdoor.sweep.launching import CallsLauncher
from backdoor.sweep.notes import OWNER

LOCAL: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}  # jobs hand over a few kB
REACH_S = 5.0
# What a job finds its code, its store and its screen by; a node that runs since before the sweep has none of it.
PASSED = ("BACKDOOR_CACHE", "XDG_CACHE_HOME", OWNER)


class RayLauncher(CallsLauncher):
    """Each job is a Ray task, which waits until a node has the CPUs and the share of a GPU that it asks for.

    hydra-ray-launcher 1.2 asks for cloudpickle below 3 and for boto3, and a worker that dies ends its sweep.

    Args:
        address: of a running cluster, `auto` (this machine is one of its nodes) or `HOST:PORT`; None = this machine
            alone, with what it has.
        num_cpus, num_gpus: what a job gets; below 1 a share of one, so that several jobs share it.

    Raises:
        UserError: ray is not installed, or a number that is not such a share or count.
    """

    NAME, NEEDS = "ray", "ray"

    def __init__(self, *, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0) -> None:
        super().__init__()
        check_share("num_cpus", num_cpus)
        check_share("num_gpus", num_gpus)
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus

    def run_all(self, call: Callable[..., Any], calls: Sequence[tuple[Any, ...]], folder: Path) -> list[Any]:
        """Each call as a task, spread over the nodes."""
        import ray

        connect(self.address)
        try:
            self.check_room([node["Resources"] for node in ray.nodes() if node["Alive"]])
            options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "scheduling_strategy": "SPREAD"}
            task = ray.remote(call).options(max_retries=0, **options)
            references = [task.remote(*arguments) for arguments in calls]
            try:
                return [result_of(reference) for reference in references]
            except BaseException:  # a cluster that was there before would let them run on for a while
                for reference in references:
                    ray.cancel(reference, force=True)
                raise
        finally:
            ray.shutdown()

    def check_room(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """Raises UserError if no node could ever run a job; Ray itself would wait for such a node."""
        if any(node.get("CPU", 0) >= self.num_cpus and node.get("GPU", 0) >= self.num_gpus for node in nodes):
            return
        found = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UserError(
            f"hydra.launcher.num_cpus={self.num_cpus} and num_gpus={self.num_gpus}: no node of the Ray cluster has as "
            f"many ({found}); ask for less, or add a node that has them"
        )


def check_share(name: str, value: float) -> None:
    """Raises UserError unless `value` is a share up to 1 or a whole number."""
    if type(value) not in (int, float) or value < 0 or (value > 1 and value != int(value)):
        raise UserError(f"hydra.launcher.{name}={value}: expected a share from 0 to 1, or a whole number")


def connect(address: str | None) -> None:
    """Join the cluster, or start one on this machine.

    Raises:
        UserError: there is none.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster sends nothing anywhere
    environment = {name: os.environ[name] for name in PASSED if name in os.environ}
    environment["PYTHONPATH"] = python_path()
    handler, here = signal.getsignal(signal.SIGTERM), threading.current_thread() is threading.main_thread()
    try:
        if address not in (None, "auto"):
            reach(str(address))
        ray.init(
            address=address or "local",
            logging_level=logging.WARNING,
            runtime_env={"env_vars": environment},
            **({} if address else LOCAL),
        )
    except (OSError, ValueError) as error:  # a refused connection, a name that is not HOST:PORT
        said = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"hydra.launcher.address={address}: no Ray cluster answers ({said}); start one with `ray start --head` and "
            "give the HOST:PORT that it prints, or leave address out for this machine alone"
        ) from None
    finally:
        if here and handler is not None:  # Ray's own ends the process without a word
            signal.signal(signal.SIGTERM, handler)


def reach(address: str) -> None:
    """Raises OSError or ValueError if nothing listens there; Ray would try for minutes, then end the process."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=REACH_S).close()


def python_path() -> str:
    """PYTHONPATH of a worker: this process's, behind the folder that this very package comes from."""
    paths = [str(Path(backdoor.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(path for path in paths if path))


def result_of(reference: Any) -> Any:
    """A task's result, or what it raised, or that its worker or its node is gone."""
    import ray

    try:
        # Waits in Python: what a signal raises within `ray.get`, native code can turn into a SystemError.
        return reference.future().result()
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except ray.exceptions.RayError as error:
        return RuntimeError(f"its process died: {str(error).splitlines()[0]}")
