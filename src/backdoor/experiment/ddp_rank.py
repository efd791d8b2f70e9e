"""What each process of a job runs (`trainer.devices=2`): the experiment; rank 0 records it, the others say nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
import warnings
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from backdoor.configs.explain import explain
from backdoor.experiment.allocator import keep_freed_memory
from backdoor.experiment.place import Place
from backdoor.store.store import write_json
from backdoor.sweep.notes import screen_of
from backdoor.sweep.workers import end_without, environment_of

# Rank 0 may wait for hours until another job has made what both need; that a process died is seen without a timeout.
PATIENCE = timedelta(days=30)


def main(job: Path) -> None:
    """What each process runs: the experiment of `job`; rank 0 records it, the others say nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent gets Ctrl-C, too, and ends its processes
    threading.Thread(target=end_without, args=(os.getppid(),), daemon=True).start()
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ.update(environment_of(None, processes))  # before torch is imported
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a hint on find_unused_parameters, at every fit
    try:
        cfg, place = read_job(job)
        join(cfg, processes)
        from backdoor.experiment import run as experiment

        keep_freed_memory()
        if rank == 0:
            if place.logging is not None:
                configure_log(OmegaConf.create(dict(place.logging)), place.verbose)
            with screen_of(place.folder):
                experiment.run(cfg, place)
        else:
            warnings.simplefilter("ignore")
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                experiment.follow(cfg, job.parent / str(rank))
        leave()
    except Exception as error:
        said = {"line": explain(error), "trace": traceback.format_exc()}
        write_json(job.with_name(f"{rank}.failed"), said)
        sys.exit(1)


def read_job(path: Path) -> tuple[DictConfig, Place]:
    """The config and the place that `launch` wrote."""
    job = json.loads(path.read_text())
    place = job["place"]
    return OmegaConf.create(job["config"]), Place(**{**place, "folder": Path(place["folder"])})


def join(cfg: DictConfig, processes: int) -> None:
    """Make this process one of the job's."""
    import torch
    import torch.distributed as dist

    from backdoor.experiment.build import hardware_of

    device = hardware_of(cfg).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def leave() -> None:
    """The job is done."""
    import torch.distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
