"""What each process of a job runs (`trainer.devices=2`): the experiment; rank 0 records it, the others say nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from backdoor.configs.explain import explain
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
        whole = read_job(job)
        HydraConfig.instance().set_config(whole)
        cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        join(cfg, processes)
        from backdoor.experiment import run as experiment

        if rank == 0:
            configure_log(whole.hydra.job_logging, whole.hydra.verbose)
            with screen_of(Path(str(whole.hydra.runtime.output_dir))):
                experiment.run(cfg)
        else:
            warnings.simplefilter("ignore")
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                experiment.follow(cfg, job.parent / str(rank))
        leave()
    except Exception as error:
        said = {"line": explain(error), "trace": traceback.format_exc()}
        write_json(job.with_name(f"{rank}.failed"), said)
        sys.exit(1)


def read_job(path: Path) -> DictConfig:
    """The config that `launch` wrote, its `hydra` node of the type that Hydra wants."""
    known = OmegaConf.create({"hydra": OmegaConf.structured(HydraConf)})
    OmegaConf.set_struct(known.hydra, False)  # hydra.env
    whole = OmegaConf.merge(known, OmegaConf.load(path))
    assert isinstance(whole, DictConfig)
    return whole


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
