"""Where a run's numbers go: a CSV file in its folder, or several places with the same keys."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backdoor.errors import UserError
from backdoor.store.intact import reason, set_aside
from backdoor.store.untrusted import content

log = logging.getLogger(__name__)

Row = Mapping[str, float | int | str]
LARGEST = 2**28  # bytes of a metrics.csv; a row has some hundred


@dataclass(frozen=True)
class Label:
    """Under which names a dashboard shows a run.

    Attributes:
        name: of the run.
        group: the study it belongs to.
        job_type: its defense.
        tags: attack, data, model, ratio, seed.
    """

    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()


NO_LABEL = Label()


@dataclass(frozen=True)
class Sample:
    """A poisoned training image, for people to look at.

    Attributes:
        row: in the original train set.
        role: the group of rows that it belongs to.
        before, after: names of its class in the clean and in the poisoned set.
        image: uint8 (H, W) or (H, W, 3), as it is trained on.
    """

    row: int
    role: str
    before: str
    after: str
    image: np.ndarray


class RunLogger(Protocol):
    """What `experiment.run` asks of a logger: start once, log rows, finish once (also after an error)."""

    def start(self, config: Mapping[str, Any], folder: Path, label: Label = NO_LABEL) -> None:
        """Open the log of one run. `config` is the resolved one, `folder` the run's own."""

    def samples(self, shown: Sequence[Sample]) -> None:
        """Show some of the poisoned training images, once they are known."""

    def log(self, row: Row) -> None:
        """Add one row, for instance `{"stage": "victim", "epoch": 3, "loss": 0.2, "c_acc": 0.91}`."""

    def finish(self, result: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
        """Close the log with the content of result.json (empty if the run failed) and its pictures."""


class Loggers:
    """Several loggers as one: `Loggers(csv=CSVLogger(), wandb=WandbLogger())`.

    They have names, so that a command line can say `logger.wandb.project=mine`.
    """

    def __init__(self, **loggers: RunLogger) -> None:
        self.loggers = tuple(loggers.values())

    def start(self, config: Mapping[str, Any], folder: Path, label: Label = NO_LABEL) -> None:
        """Start each, in order."""
        for logger in self.loggers:
            logger.start(config, folder, label)

    def samples(self, shown: Sequence[Sample]) -> None:
        """Hand them to each."""
        for logger in self.loggers:
            logger.samples(shown)

    def log(self, row: Row) -> None:
        """Hand the row to each."""
        for logger in self.loggers:
            logger.log(row)

    def finish(self, result: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
        """Finish each, the last first, even if one of them fails; then that error is raised."""
        with ExitStack() as stack:
            for logger in self.loggers:
                stack.callback(logger.finish, result, figures)


class CSVLogger:
    """`metrics.csv` in the run's folder: one header, then one row a call; a new key becomes a new column.

    The file of an interrupted run is continued: a row with the `stage` and `epoch` of an older one replaces
    it, and a last line that was not written to its end is dropped.
    """

    filename = "metrics.csv"

    def __init__(self) -> None:
        self.path: Path | None = None
        self.columns: list[str] = []
        self.rows: list[dict[str, str]] = []
        self.places: dict[tuple[str, str], int] = {}

    def start(self, config: Mapping[str, Any], folder: Path, label: Label = NO_LABEL) -> None:
        """Make the folder and read what an interrupted run left. Raises UserError if it is unwritable."""
        self.path, self.columns, self.rows, self.places = folder / self.filename, [], [], {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            older = self._older() if self.path.exists() else []
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.columns = list(dict.fromkeys(key for row in older for key in row))
        for row in older:
            self._keep({key: value for key, value in row.items() if value})
        if older:
            self._rewrite()

    def samples(self, shown: Sequence[Sample]) -> None:
        """Nothing: plan.npz has all of them."""

    def log(self, row: Row) -> None:
        """Write one row now. Raises UserError if the disk is full or the folder unwritable."""
        if self.path is None:
            raise RuntimeError("CSVLogger.log: expected start() to be called before")
        fresh = [key for key in row if key not in self.columns]
        self.columns += fresh
        text = {key: str(value) for key, value in row.items()}
        replaced = self._keep(text)
        if fresh or replaced:
            self._rewrite()
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(self._text([text], header=False))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def finish(self, result: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
        """Nothing is left to do: result.json and the figures lie beside the file."""
        self.path = None

    def _older(self) -> list[dict[str, str]]:
        """What an interrupted run left; a file that cannot be read is set aside. Raises OSError as `set_aside`."""
        assert self.path is not None
        try:
            text = content(self.path, largest=LARGEST).decode()
            reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]), restval="", strict=True)
            return [{key: row[key] for key in reader.fieldnames or ()} for row in reader]
        except (IsADirectoryError, ValueError, csv.Error) as error:
            set_aside(self.path)
            log.warning("%s cannot be read (%s) and is set aside; a new one begins", self.path, reason(error))
            return []

    def _keep(self, row: dict[str, str]) -> bool:
        """Remember the row; True if it replaced an older one."""
        if "stage" in row and "epoch" in row:
            place = self.places.setdefault((row["stage"], row["epoch"]), len(self.rows))
            if place < len(self.rows):
                self.rows[place] = row
                return True
        self.rows.append(row)
        return False

    def _text(self, rows: Sequence[Mapping[str, str]], *, header: bool) -> str:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()

    def _rewrite(self) -> None:
        assert self.path is not None
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            part.write_text(self._text(self.rows, header=True), encoding="utf-8")
            os.replace(part, self.path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _unwritable(self.path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"hydra.run.dir: expected to write {path}, got: {error.strerror or error}; "
        "free space there or choose another folder"
    )
