"""The command line: compose the config, run the experiment, answer a user's mistake with one line."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from backdoor import __version__
from backdoor.cli_check import Command, Job, check_config, check_job, read_command, sweep_jobs, waits_for_hydra
from backdoor.cli_errors import explain
from backdoor.confdir import conf_dir
from backdoor.errors import UserError
from backdoor.finished import adopt, run_words
from backdoor.list import groups
from backdoor.plugins import package_dirs, register

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> None:
    """`python -m backdoor` and `backdoor`: exits with 0, 2 (the user's mistake) or 130 (Ctrl-C)."""
    sys.exit(run_command())


def run_command(program: str = "backdoor.experiment", config: str = "config") -> int:
    """Run the command line in `sys.argv` (where Hydra reads it too); the exit status.

    Args:
        program: the module whose `check(cfg, here=...)` and `run(cfg)` serve a job. It is imported only once the
            configs are composed: it imports torch, which takes seconds that --help should not wait for.
        config: the primary config in conf/.

    With HYDRA_FULL_ERROR=1 in the environment every error keeps its traceback.
    """
    if "--version" in sys.argv[1:]:
        print(f"backdoor {__version__}")
        return 0
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Without it Hydra prints errors in its own way and exits, and they never get here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    checked: Command | None = None  # whose words an error is about
    try:
        register()
        command = read_command(sys.argv[1:], config)
        added = run_words(command.overrides)
        command = replace(command, overrides=(*command.overrides, *added), argv=(*command.argv, *added))
        jobs: list[tuple[Command, Job]] = []
        for checked in sweep_jobs(command) if command.sweep else ():
            jobs.append((checked, check_job(checked)))
        checked = command
        check_values(jobs, program)
        # Hydra's own list for --help would name the parts that choices are made of as well.
        OmegaConf.register_new_resolver("choices", lambda: choices_text(command), replace=True)
        sys.argv[1:] = command.argv
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config)(job_of(program))()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit(1) once it has shut down.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return INTERRUPTED
        raise
    except _JobError as carrier:
        return _answer(carrier.error, checked, full)
    except Exception as error:
        return _answer(error, checked, full)
    return 0


def check_values(jobs: Sequence[tuple[Command, Job]], program: str) -> None:
    """Refuse a sweep with a job whose values are bad, before the first job runs.

    Raises:
        UserError: which job, by its number and its overrides, and what is wrong with it.
    """
    if not jobs:
        return
    check = import_module(program).check  # only now, when all jobs could be composed
    for number, (command, job) in enumerate(jobs):
        which = f"job {number} ({' '.join(command.overrides)})"
        try:
            check(job.cfg, here=job.here)
        except Exception as error:
            if waits_for_hydra(error):
                continue
            line = explain(error, command)
            if line is None:
                error.add_note(f"{which} cannot run")
                raise
            raise UserError(f"{which}: {line}") from error


def choices_text(command: Command) -> str:
    """The lines `group: choice, choice` of `--help`, wrapped."""
    extra = [Path(command.extra)] if command.extra is not None else []
    found = groups(Path(command.path), *extra, *package_dirs().values())
    lines = (f"{name + ':':<10}{', '.join(sorted(choices))}" for name, choices in found.items())
    return "\n".join(textwrap.fill(line, 110, subsequent_indent=" " * 10) for line in lines)


class _JobError(BaseException):
    """Carries a job's error past Hydra, which would print a line of its own for it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _answer(error: Exception, command: Command | None, full: bool) -> int:
    """Print the one line that explains `error`; raise it again if there is none."""
    line = None if full else explain(error, command)
    if line is None:
        raise error
    print(f"error: {line}", file=sys.stderr)
    return USER_ERROR


def job_of(program: str) -> Callable[[DictConfig], None]:
    """What Hydra calls for one job: check its config, then run the program."""

    def run_job(cfg: DictConfig) -> None:
        try:
            cfg = adopt(cfg, HydraConfig.get().overrides.task)
            check_config(cfg)
            import_module(program).run(cfg)
        except Exception as error:
            line = explain(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                # Hydra goes on with the other jobs and raises only the first error, at the very end.
                print(f"job {HydraConfig.get().job.num} failed: {line or repr(error)}", file=sys.stderr)
            elif line is not None:
                raise _JobError(error) from None
            raise

    return run_job
