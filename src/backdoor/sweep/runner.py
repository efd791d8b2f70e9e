"""A sweep: what is finished is taken from the store, the rest goes to Hydra's launcher, victims first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from backdoor.configs.command import Command, Job
from backdoor.errors import UserError, check_whole
from backdoor.sweep.folders import check_folders, folder_of_sweep, make_folder
from backdoor.sweep.jobs import changing_words, own_words, quoted
from backdoor.sweep.notes import ENDS
from backdoor.sweep.progress import watching
from backdoor.sweep.reuse import find, reuse, stamp

KEPT = "from the store"
Task = Callable[[DictConfig], Any]


@dataclass(frozen=True)
class Ended:
    """How a job of a sweep ended.

    Attributes:
        words: its overrides.
        folder: its folder; None if it never had one.
        state: done, failed, interrupted, or `KEPT`.
        why: the line that explains a failure.
        mistake: the failure is the user's to mend.
    """

    words: tuple[str, ...]
    folder: Path | None
    state: str
    why: str = ""
    mistake: bool = False

    @property
    def whole(self) -> bool:
        """Whether it has come to its end."""
        return self.state in ("done", KEPT)


def kept_results(jobs: Sequence[Job]) -> list[Path | None]:
    """The kept result of each job, None for those to run."""
    once = cache(stamp)  # many jobs name the same files

    def kept(job: Job) -> Path | None:
        try:
            return find(job.cfg, once)
        except OmegaConfBaseException:  # a value that only the running job has; it looks again
            return None

    return [kept(job) for job in jobs]


@contextmanager
def hydra_of(command: Command, first: Sequence[str]) -> Iterator[tuple[HydraContext, DictConfig]]:
    """Hydra as it is within a sweep: its context, and the config that all jobs' configs come from."""
    with initialize_config_dir(config_dir=command.path, job_name="backdoor", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        words = [*first, *command.search_words(), "hydra.mode=MULTIRUN"]
        master = hydra.compose_config(config_name=command.name, overrides=words, run_mode=RunMode.MULTIRUN)
        with open_dict(master):
            master.hydra.overrides.task = [word for word in command.overrides if not is_hydras(word)]
        callbacks = Callbacks(master)
        callbacks.on_multirun_start(config=master, config_name=command.name)
        yield HydraContext(config_loader=hydra.config_loader, callbacks=callbacks), master
        callbacks.on_multirun_end(config=master, config_name=command.name)


def run_sweep(
    command: Command, words: Sequence[tuple[str, ...]], jobs: Sequence[Job], kept: Sequence[Path | None], task: Task
) -> list[Ended]:
    """Fill the folders of the finished jobs and launch the others; how each ended, in the order of `words`.

    Args:
        jobs: the first of `words`, composed; past them a job looks for a kept result as it starts.
        kept: of each of `jobs`.
    """
    setup_globals()
    with hydra_of(command, words[0]) as (context, master):
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=master)
        sweep_dir = folder_of_sweep(master)
        folders = {number: folder_of(job, number, master) for number, job in enumerate(jobs)}
        check_folders(sweep_dir, folders)
        make_folder(sweep_dir, master)
        ended: dict[int, Ended] = {}
        for number, (job, found) in enumerate(zip(jobs, kept, strict=True)):
            folder = folders[number]
            if found is not None and folder is not None and reuse(found, job.cfg, folder):
                write_words(job, words[number], folder, str(master.hydra.output_subdir))
                ended[number] = Ended(words[number], folder, KEPT)
        rest = [number for number in range(len(words)) if number not in ended]
        batch = [launch_words(words[number], folders.get(number), sweep_dir) for number in rest]
        names = [" ".join(one) for one in changing_words([words[number] for number in rest])]
        # Those past `jobs`, which nobody has told their folder, are the last ones and so get their own number.
        first = len(words) - len(rest)
        separate = not isinstance(launcher, BasicLauncher)
        with watching(sweep_dir, names, separate=separate, first=first) as progress:
            returns = list(launch(launcher, batch, first, master.hydra.sweeper.get("max_batch_size")))
        for place, (number, one) in enumerate(zip(rest, returns, strict=True), start=first):
            ended[number] = ended_of(words[number], one, progress.ended.get(place, "failed"))
    return [ended[number] for number in range(len(words))]


def launch(launcher: Launcher, batch: Sequence[list[str]], first: int, size: int | None) -> Iterator[JobReturn]:
    """How each job of the batch ended; `hydra.sweeper.max_batch_size` of them are given to the launcher at a time.

    Raises:
        UserError: that number is below 1.
    """
    if size is not None:
        check_whole({"hydra.sweeper.max_batch_size": size})
    for at in range(0, len(batch), size or max(1, len(batch))):
        yield from launcher.launch(batch[at : at + (size or len(batch))], initial_job_idx=first + at)


def run_search(command: Command, task: Task) -> tuple[str, Path]:
    """Let another sweeper than Hydra's grid choose the jobs; how many ended how, and the sweep's folder.

    Raises:
        UserError: what ends the sweeper of it.
    """
    setup_globals()
    with hydra_of(command, own_words(command.overrides)) as (context, master):
        sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=task, config=master)
        sweep_dir = folder_of_sweep(master)
        make_folder(sweep_dir, master)
        with watching(sweep_dir, (), separate=False) as progress:
            sweeper.sweep(arguments=list(master.hydra.overrides.task))
    return progress.counts(), sweep_dir


def folder_of(job: Job, number: int, master: DictConfig) -> Path | None:
    """Where Hydra would put the job; None if only the running job can tell."""
    whole = job.whole
    OmegaConf.copy_cache(from_config=master, to_config=whole)
    with open_dict(whole):
        whole.hydra.job.id = whole.hydra.job.num = number
    try:
        return Path(str(whole.hydra.sweep.dir)) / str(whole.hydra.sweep.subdir)
    except OmegaConfBaseException:
        return None


def launch_words(words: Sequence[str], folder: Path | None, sweep_dir: Path) -> list[str]:
    """A job's words for the launcher; its folder is said, for a launcher counts only the jobs that it gets."""
    own = [word for word in words if not is_hydras(word)]
    if folder is None or not folder.is_relative_to(sweep_dir):
        return own
    return [*own, f"hydra.sweep.subdir={quoted(folder.relative_to(sweep_dir))}"]


def is_hydras(word: str) -> bool:
    """Whether a word is about Hydra itself; those are the sweep's, not a job's."""
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def write_words(job: Job, words: Sequence[str], folder: Path, subdir: str) -> None:
    """The job's overrides and config where Hydra would have put them."""
    place = folder / subdir
    place.mkdir(exist_ok=True)
    OmegaConf.save(job.cfg, place / "config.yaml")
    OmegaConf.save(ListConfig([word for word in words if not is_hydras(word)]), place / "overrides.yaml")


def ended_of(words: tuple[str, ...], job: JobReturn, state: str) -> Ended:
    """How a launched job ended; `state`: by its own word, of one that has not come to its end."""
    folder = None if job.hydra_cfg is None else Path(str(job.hydra_cfg.hydra.runtime.output_dir))
    if job.status == JobStatus.COMPLETED:
        return Ended(words, folder, KEPT if job.return_value == KEPT else "done")
    try:
        why, mistake = str(job.return_value), False
    except UserError as error:
        why, mistake = str(error), True
    except Exception as error:
        why, mistake = str(error) or repr(error), False
    return Ended(words, folder, state if state == "interrupted" else "failed", why, mistake)


def closing_lines(ended: Sequence[Ended], results: Mapping[int, Mapping[str, Any]], most: int = 40) -> list[str]:
    """The table at the end of a sweep: every job, past `most` only those without an end, and a line with the counts.

    Args:
        results: number of a job -> the `final` of its result.json.
    """
    lines, changing = [], changing_words([one.words for one in ended])
    for number, one in enumerate(ended):
        if len(ended) > most and one.whole:
            continue
        shown = [
            f"{title} {100 * results[number].get(worst, results[number][key]):5.1f}"
            for key, worst, title in (("c_acc", "", "C-Acc"), ("asr", "asr_worst", "ASR"))
            if key in results.get(number, {})
        ]
        lines.append("  ".join([f"{number:>4}", f"{one.state:<14}", *shown, *changing[number], one.why]).rstrip())
    counts = Counter(one.state for one in ended)
    summary = ", ".join(f"{counts[state]:,} {state}" for state in ("done", KEPT, *ENDS[1:]) if counts[state])
    return [*lines, f"{len(ended):,} jobs: {summary}"]


def shown_folder(ended: Sequence[Ended]) -> str:
    """The folder that all jobs lie in, as seen from here; empty if there is none."""
    folders = [str(one.folder.resolve().parent) for one in ended if one.folder is not None]
    return os.path.relpath(os.path.commonpath(folders)) if folders else ""
