"""Hydra's launcher plugin for several processes on one machine; the processes are `backdoor.workers`'."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from backdoor.errors import UserError
from backdoor.workers import run_all, slots_of


class JoblibLauncher(Launcher):
    """Several jobs at a time, each worker with a device of its own.

    hydra-joblib-launcher 1.2 (2022) runs with Hydra 1.3, but gives a worker no device, and a worker that dies (a kill,
    no memory) ends its sweep.

    Args:
        workers: processes; None = one a device, or 2 without devices.
        devices: CUDA devices, one for each worker; a device named twice gets two. None = the worker sees all.

    Raises:
        UserError: joblib is not installed, more workers than devices, or a number below 1.
    """

    def __init__(self, *, workers: int | None = None, devices: Sequence[int | str] | None = None) -> None:
        if find_spec("joblib") is None:
            raise UserError("hydra/launcher=joblib: joblib is not installed; pip install 'backdoor[launchers]'")
        self.slots = slots_of(workers, devices)
        self.config: DictConfig | None = None
        self.task: TaskFunction | None = None
        self.context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's word before `launch`."""
        self.config, self.task, self.context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, how each ended in their order; none stops another."""
        assert self.config is not None
        assert self.task is not None
        assert self.context is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        # Resolvers and the composed defaults, which the other processes lack.
        shared = (self.context, self.config, self.task, Singleton.get_state())
        calls = [(initial_job_idx + place, list(words), *shared) for place, words in enumerate(job_overrides)]
        ended = run_all(run_one, calls, self.slots)
        return [one if isinstance(one, JobReturn) else failed(one, calls[place][1]) for place, one in enumerate(ended)]


def run_one(
    number: int, words: list[str], context: HydraContext, config: DictConfig, task: TaskFunction, state: Any
) -> JobReturn:
    """One job, in a worker."""
    setup_globals()
    Singleton.set_state(state)
    job = context.config_loader.load_sweep_config(config, words)
    with open_dict(job):
        job.hydra.job.id = f"{job.hydra.job.name}_{number}"
        job.hydra.job.num = number
    HydraConfig.instance().set_config(job)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=job,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def failed(error: BaseException, words: Sequence[str]) -> JobReturn:
    """A job that raised outside of its task, or whose worker died."""
    result = JobReturn(overrides=words, status=JobStatus.FAILED)
    result.return_value = error if isinstance(error, UserError) else RuntimeError(str(error) or repr(error))
    return result
