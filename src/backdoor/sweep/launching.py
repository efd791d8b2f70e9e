"""What the launchers share: a sweep's jobs become calls that any process on any machine can serve."""

from __future__ import annotations

import os
import platform
from abc import abstractmethod
from collections.abc import Callable, Sequence
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


class CallsLauncher(Launcher):
    """A launcher of Hydra's whose jobs are calls; no job that fails stops another.

    Attributes:
        NAME: its choice, as in `hydra/launcher=NAME`.
        NEEDS: the module that it is built on.

    Raises:
        UserError: that module is not installed.
    """

    NAME: str
    NEEDS: str

    def __init__(self) -> None:
        if find_spec(self.NEEDS) is None:
            raise UserError(
                f"hydra/launcher={self.NAME}: {self.NEEDS} is not installed; pip install 'backdoor[launchers]'"
            )
        self.config: DictConfig | None = None
        self.task: TaskFunction | None = None
        self.context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's word before `launch`."""
        self.config, self.task, self.context = config, task_function, hydra_context

    @abstractmethod
    def run_all(self, call: Callable[..., Any], calls: Sequence[tuple[Any, ...]], folder: Path) -> list[Any]:
        """`call(*arguments)` for each of `calls`; the results, or what was raised, in the order given.

        Args:
            folder: the sweep's, for what the launcher itself writes.

        Raises:
            UserError: none of them can run.
        """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, how each ended in their order; none stops another."""
        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        # Resolvers and the composed defaults, which the other processes lack.
        shared = (self.context, self.config, self.task, Singleton.get_state(), os.getcwd())
        calls = [(initial_job_idx + place, list(words), *shared) for place, words in enumerate(job_overrides)]
        ended = self.run_all(run_one, calls, folder)
        return [one if isinstance(one, JobReturn) else failed(one, calls[place][1]) for place, one in enumerate(ended)]


def run_one(
    number: int, words: list[str], context: HydraContext, config: DictConfig, task: TaskFunction, state: Any, cwd: str
) -> JobReturn:
    """One job, in a worker, in the folder that the command was given in; what it raises is in what it returns."""
    try:
        enter(cwd)
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
    except Exception as error:
        return failed(error, words)


def enter(folder: str) -> None:
    """Make `folder` the current one, for relative paths mean the same everywhere.

    Raises:
        UserError: this machine does not have it.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror} on {platform.node()}; a sweep over several machines is started in a folder "
            "that all of them share, as are hydra.sweep.dir and store.dir"
        ) from None


def failed(error: BaseException, words: Sequence[str]) -> JobReturn:
    """A job that raised outside of its task, or whose worker died."""
    result = JobReturn(overrides=words, status=JobStatus.FAILED)
    result.return_value = error if isinstance(error, UserError) else RuntimeError(str(error) or repr(error))
    return result
