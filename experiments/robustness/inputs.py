"""Odd inputs: does each get one clear line before anything trains, or work if it is valid?

python experiments/robustness/inputs.py [--group GROUP ...] [--workers 2]

The list is inputs.txt: under a `[group]`, a line is what is right and a command's words.

    refused   exit 2, one line `error: ...`, and no artifact was trained
    works     exit 0
    either    one of the two
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import (
    SMALL,
    Ended,
    Row,
    arguments,
    came_to,
    close,
    command,
    last_word,
    prepare,
    run,
    run_all,
    tell,
)
from files import make_files

LIST = Path(__file__).with_name("inputs.txt")
RIGHT = {"refused": {"clear"}, "works": {"accepted"}, "either": {"clear", "accepted"}}


@dataclass(frozen=True)
class Input:
    """A line of the list."""

    group: str
    expected: str
    text: str

    def words(self, files: Path) -> list[str]:
        """The command's words: its own, and those of a small quick run that it does not set."""
        own = shlex.split(self.text.replace("{files}", str(files)))
        flags = [word for word in own if word.startswith("-")]
        if {"--version", "--help", "--hydra-help", "--info"} & set(flags):
            return own
        set_by_own = {re.split("[@=]", word.lstrip("+~"))[0] for word in own}
        where = "hydra.sweep.dir=sweep" if {"-m", "--multirun"} & set(flags) else "hydra.run.dir=run"
        base = [*SMALL, where, "store.dir=store"]
        taken = {"model.width"} if "model" in set_by_own else set()
        if "trainer" in set_by_own:
            base += ["trainer.max_epochs=1", "trainer.max_batches=4"]
        return [word for word in base if word.split("=")[0] not in set_by_own | taken and not self.drops(word)] + own

    def drops(self, word: str) -> bool:
        """Whether the command takes away a whole part that the quick run sets something of."""
        parts = {one.lstrip("~").split("=")[0] for one in self.text.split() if re.match(r"~|\w+=null$", one)}
        return word.split("=")[0].split(".")[0] in parts


def read(path: Path = LIST) -> Iterator[Input]:
    """The list.

    Raises:
        ValueError: a line that is none of its kinds.
    """
    group = ""
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            group = line.strip("[] ")
            continue
        expected, _, text = line.partition(" ")
        if expected not in RIGHT:
            raise ValueError(f"{path.name}: {line}")
        yield Input(group, expected, text.strip())


def trained(folder: Path) -> bool:
    """Whether an artifact of a trained stage is in the case's store."""
    return any(folder.glob("store/victim/*/artifact.json")) or any(folder.glob("store/stage/*/artifact.json"))


def row(case: Input, folder: Path, ended: Ended) -> Row:
    came = came_to(ended)
    if came == "clear" and case.expected == "refused" and trained(folder):
        came = "late"
    return Row("inputs", case.group, case.text, case.expected, came, came in RIGHT[case.expected], ended.seconds,
               last_word(ended))  # fmt: skip


def measure(place: Path, groups: Sequence[str] = (), workers: int = 2) -> list[Row]:
    """Run all of the list, or some groups of it."""
    cases = [case for case in read() if not groups or case.group in groups]
    files, seed = make_files(place / "files"), place / "seed"
    begun = run(command(*SMALL, "store.dir=store", "hydra.run.dir=run"), seed)
    if begun.status:
        raise SystemExit(f"the quick run itself fails: {begun.err}")

    def jobs() -> Iterator[tuple]:
        for number, case in enumerate(cases):
            folder = place / "cases" / str(number)
            shutil.copytree(seed / "store" / "data", folder / "store" / "data")  # decoded digits
            yield command(*case.words(files)), folder

    rows: list[Row | None] = [None] * len(cases)
    for number, ended in run_all(jobs(), workers):
        folder = place / "cases" / str(number)
        rows[number] = row(cases[number], folder, ended)
        tell([rows[number]], place)
        shutil.rmtree(folder, ignore_errors=True)
    found = [one for one in rows if one is not None]
    if (files / "touched").exists():
        found.append(Row("inputs", "checkpoints", "hostile.pt", "not run", "FOREIGN CODE RAN", False, 0.0, ""))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--group", nargs="*", default=[], help="groups of inputs.txt; none: all")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory(prefix="robust-") as place:
        close(measure(Path(place), args.group, args.workers), args.csv)


if __name__ == "__main__":
    main()
