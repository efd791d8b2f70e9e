"""One job in several processes of this machine, which torchrun's agent starts; each of them runs `ddp_rank`."""

from __future__ import annotations

import json
import logging
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from backdoor.errors import UserError
from backdoor.experiment.place import Place
from backdoor.store.store import write_json
from backdoor.sweep.interrupts import Stopped, ending
from backdoor.sweep.notes import note_end

JOB = "job.json"
AGENT_LOGS = ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api")


def launch(cfg: DictConfig, place: Place, processes: int) -> dict[str, Any]:
    """Run the job that `cfg` describes in `processes` processes, whose rank 0 fills `place.folder`; waits for them.

    Returns:
        The result, as in result.json.

    Raises:
        UserError: the mistake that the first process to fail has found.
        RuntimeError: any other end of it, with its traceback if it had one.
    """
    with tempfile.TemporaryDirectory(prefix="backdoor-") as name:
        job = Path(name) / JOB
        config = OmegaConf.to_container(cfg, resolve=True)
        write_json(job, {"config": config, "place": {**asdict(place), "folder": str(place.folder)}})
        try:
            run_agent(job, processes)
        except BaseException as error:
            note_end(place.folder, ending(error))
            raise
    return dict(json.loads((place.folder / "result.json").read_text()))


def run_agent(job: Path, processes: int) -> None:
    """Start the processes and wait; the first failure ends all of them and is raised."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGTERM",  # Ctrl-C stays Python's own; the agent ends the processes either way
    )
    try:
        with quiet_agent():
            elastic_launch(config, sys.executable)("-m", "backdoor.experiment.ddp_rank", str(job))
    except ChildFailedError as error:
        raise first_failure(job, error) from None
    except SignalException as stop:
        raise Stopped(stop.sigval) from None


@contextmanager
def quiet_agent() -> Iterator[None]:
    """The agent says what the processes have said already; and its signal handler does not outlive it."""
    loggers = [logging.getLogger(name) for name in AGENT_LOGS]
    levels, handler = [one.level for one in loggers], signal.getsignal(signal.SIGTERM)
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        if threading.current_thread() is threading.main_thread():  # elsewhere none was set
            signal.signal(signal.SIGTERM, handler)


def first_failure(job: Path, error: Any) -> Exception:
    """What the process that failed first has left; the others failed because it was gone."""
    left = sorted(job.parent.glob("*.failed"), key=lambda path: path.stat().st_mtime_ns)
    if not left:
        rank, failure = error.get_first_failure()
        return RuntimeError(f"process {rank} died (exit status {failure.exitcode}): killed, out of memory, or a crash")
    said = json.loads(left[0].read_text())
    if said["line"] is not None:
        return UserError(said["line"])
    return RuntimeError(f"process {left[0].stem} failed:\n{said['trace']}")
