"""The command line: compose the config, run the experiment, answer a user's mistake with one line."""

from __future__ import annotations

import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from backdoor import __version__
from backdoor.configs.adopt import adopt, run_words
from backdoor.configs.class_names import number_classes
from backdoor.configs.command import (
    MAX_CHECKED_JOBS,
    Command,
    Job,
    check_choices,
    check_config,
    check_job,
    check_names,
    read_command,
    waits_for_hydra,
)
from backdoor.configs.composer import Composer
from backdoor.configs.explain import explain
from backdoor.configs.listing import groups
from backdoor.configs.places import conf_dir
from backdoor.configs.plugins import package_dirs, register
from backdoor.errors import UserError
from backdoor.experiment.allocator import keep_freed_memory
from backdoor.experiment.place import Place
from backdoor.sweep.interrupts import Stopped, stop_of, stoppable
from backdoor.sweep.jobs import all_words, is_basic, sweeper_of
from backdoor.sweep.progress import noted
from backdoor.sweep.reuse import final_of, find, objective_of, reuse
from backdoor.sweep.runner import KEPT, closing_lines, kept_results, run_search, run_sweep, shown_folder

FAILED = 1
USER_ERROR = 2


def main() -> None:
    """`python -m backdoor` and `backdoor`: exits with 0, 2 (the user's mistake), 130 (Ctrl-C) or 143 (SIGTERM)."""
    sys.exit(run_command())


def run_command(program: str = "backdoor.experiment.run", config: str = "config") -> int:
    """`obey`, until it ends or is stopped from outside; the exit status."""
    try:
        with stoppable():
            return obey(program, config)
    except (KeyboardInterrupt, SystemExit, Stopped) as error:
        stop = stop_of(error)
        if stop is None or stop[0].startswith("exit("):
            raise
        print(f"interrupted ({stop[0]})", file=sys.stderr)
        return stop[1]


def obey(program: str, config: str) -> int:
    """Run the command line in `sys.argv` (where Hydra reads it too); the exit status.

    Args:
        program: the module whose `check(cfg, here=...)` and `run(cfg, place)` serve a job. It is imported only once the
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
    checked: list[Command] = []  # the last one's words an error is about
    try:
        register()
        command = read_command(sys.argv[1:], config)
        added = run_words(command.overrides)
        command = replace(command, overrides=(*command.overrides, *added), argv=(*command.argv, *added))
        if command.sweep and command.composable:
            return sweep(command, program, checked)
        checked.append(command)
        if command.names_places and command.composable:
            check_names(command.compose(command.overrides))  # Hydra itself makes the folder before a job can look
        # Hydra's own list for --help would name the parts that choices are made of as well.
        OmegaConf.register_new_resolver("choices", lambda: choices_text(command), replace=True)
        sys.argv[1:] = command.argv
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config)(job_of(program))()
    except _JobError as carrier:
        return _answer(carrier.error, checked, full)
    except Exception as error:
        return _answer(error, checked, full)
    return 0


def sweep(command: Command, program: str, checked: list[Command]) -> int:
    """Run a sweep: all jobs are composed and checked before the first one runs; the exit status.

    Args:
        checked: gets each job's command before it is composed.
    """
    checked.append(replace(command, sweep=False))
    sweeper = sweeper_of(command)
    if not is_basic(sweeper):
        counts, place = run_search(command, job_of(program))
        print(f"{counts or 'no jobs'}\nFolder: {os.path.relpath(place)}", flush=True)
        return 0
    words = all_words(command, sweeper)
    composer, jobs = Composer(command), []
    for one in words[:MAX_CHECKED_JOBS]:
        checked.append(replace(command, overrides=one, sweep=False))
        jobs.append(check_job(checked[-1], composer.compose))
    kept = kept_results(jobs)
    check_values(
        [(number, checked[number + 1], job) for number, job in enumerate(jobs) if kept[number] is None], program
    )
    checked.append(replace(command, sweep=False))
    ended = run_sweep(command, words, jobs, kept, job_of(program))
    finals = {number: final_of(one.folder) for number, one in enumerate(ended) if one.folder and one.whole}
    print("\n".join(closing_lines(ended, finals)), flush=True)
    folder, failed = shown_folder(ended), [one for one in ended if not one.whole]
    if folder:
        print(f"Folder: {folder}", flush=True)
    if not failed:
        return 0
    print(f"error: {len(failed)} of {len(ended)} jobs failed; the first: {failed[0].why}", file=sys.stderr)
    return USER_ERROR if all(one.mistake for one in failed) else FAILED


def check_values(jobs: Sequence[tuple[int, Command, Job]], program: str) -> None:
    """Refuse a sweep with a job whose values are bad, before the first job runs.

    Raises:
        UserError: which job, by its number and its overrides, and what is wrong with it.
    """
    if not jobs:
        return
    check = import_module(program).check  # only now, when all jobs could be composed
    for number, command, job in jobs:
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


def _answer(error: Exception, checked: Sequence[Command], full: bool) -> int:
    """Print the one line that explains `error`; raise it again if there is none."""
    line = None if full else explain(error, checked[-1] if checked else None)
    if line is None:
        raise error
    print(f"error: {line}", file=sys.stderr)
    return USER_ERROR


def job_of(program: str) -> Callable[[DictConfig], Any]:
    """What Hydra calls for one job: check its config, then run the program.

    In a sweep, a job that another process has finished meanwhile is not run, and whatever a job raises becomes one of
    two plain errors, which can be sent from a worker process.
    """

    def run_job(cfg: DictConfig) -> Any:
        hydra_cfg = HydraConfig.get()
        if hydra_cfg.mode != RunMode.MULTIRUN:
            return run_one(cfg, False)
        with noted(Path(hydra_cfg.sweep.dir), hydra_cfg.job.num, Path(hydra_cfg.runtime.output_dir)):
            return run_one(cfg, True)

    def run_one(cfg: DictConfig, multirun: bool) -> Any:
        try:
            words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)  # as typed: seed=${x} is a word
            check_choices(words)
            cfg = adopt(cfg, words)
            check_config(cfg)
            number_classes(cfg)
            folder = Path(HydraConfig.get().runtime.output_dir)
            kept = find(cfg) if multirun else None
            again = kept is not None and reuse(kept, cfg, folder)
            if not again:
                keep_freed_memory()  # this process does nothing else
                import_module(program).run(cfg, Place.of(HydraConfig.get()))
            if multirun and not is_basic(HydraConfig.get().sweeper):
                return objective_of(folder, OmegaConf.select(cfg, "objective", default="c_acc"))
            return KEPT if again else None
        except Exception as error:
            line = explain(error)
            if multirun:
                print(f"job {folder_name()} failed: {line or repr(error)}", file=sys.stderr, flush=True)
                if line is None:
                    traceback.print_exc()
                    raise RuntimeError(repr(error)) from None
                raise UserError(line) from None
            if line is not None:
                raise _JobError(error) from None
            raise

    return run_job


def folder_name() -> str:
    """The running job's folder, without those above it."""
    return Path(HydraConfig.get().runtime.output_dir).name
