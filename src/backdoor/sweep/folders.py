"""Where a sweep writes: one folder that can be written, and in it one for each job, which no other job has."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from backdoor.errors import UserError
from backdoor.sweep.notes import NOTES


def folder_of_sweep(master: DictConfig) -> Path:
    """`hydra.sweep.dir`; resolved here first, all jobs get this very time.

    Raises:
        UserError: it is empty.
    """
    name = str(master.hydra.sweep.dir or "")
    if not name:
        raise UserError("hydra.sweep.dir=: expected a folder to write into, got none")
    return Path(name)


def make_folder(sweep_dir: Path, master: DictConfig) -> None:
    """Make the sweep's folder, with its config.

    Raises:
        UserError: it cannot be written.
    """
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(master, sweep_dir / "multirun.yaml")
    except OSError as error:
        raise UserError(
            f"hydra.sweep.dir={sweep_dir}: expected a writable folder, got: {error.strerror or error}"
        ) from None


def check_folders(sweep_dir: Path, folders: Mapping[int, Path | None]) -> None:
    """Each job has a folder of its own, below the sweep's and not in another job's, where no report would look.

    Raises:
        UserError: one has not.
    """
    top, taken = os.path.abspath(sweep_dir), dict[str, int]()
    for number, folder in folders.items():
        if folder is None:  # the running job checks it
            continue
        check_below(sweep_dir, number, folder)
        place = os.path.abspath(folder)
        if place in taken:
            raise shared(folder, taken[place], number)
        taken[place] = number
    for place, number in taken.items():
        while len(place := os.path.dirname(place)) > len(top):
            if place in taken:
                raise shared(Path(place), taken[place], number)


def check_below(sweep_dir: Path, number: int, folder: Path) -> None:
    """Raises UserError unless the job's folder lies below the sweep's."""
    if not os.path.abspath(folder).startswith(os.path.join(os.path.abspath(sweep_dir), "")):
        raise UserError(
            f"hydra.sweep.subdir: job {number} would write into {folder}; expected a folder below the sweep's "
            f"({sweep_dir})"
        )


def claim(sweep_dir: Path, number: int, folder: Path) -> None:
    """Take a folder for a job, which may have taken it before: Slurm starts one again.

    Raises:
        UserError: another job of this sweep has it.
    """
    digest = hashlib.blake2b(os.path.realpath(folder).encode(errors="surrogateescape"), digest_size=10).hexdigest()
    path = sweep_dir / NOTES / f"{digest}.claim"
    with contextlib.suppress(OSError):  # a full disk is the job's trouble
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "x") as file:
                file.write(str(number))
        except FileExistsError:
            owner = path.read_text()
            if owner != str(number):
                raise shared(folder, int(owner or -1), number) from None


def shared(folder: Path, first: int, second: int) -> UserError:
    """What is wrong with two jobs in one folder."""
    return UserError(
        f"hydra.sweep.subdir: jobs {first} and {second} would both write into {folder}; give each a folder of its own, "
        "as ${hydra.job.num}"
    )
