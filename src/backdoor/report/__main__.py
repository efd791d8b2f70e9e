"""`python -m backdoor.report RUNS... [out=FOLDER]`: the records of many runs as tables and as a leaderboard."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from backdoor.errors import UserError
from backdoor.report.records import collect, newest

USER_ERROR = 2
NEEDED = ("polars", "plotly", "itables")
OUT = "out="
PAGE = "index.html"


def main() -> None:
    """Exits with 0, or with 2 if there is nothing to report or nowhere to put it."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor.report",
        usage="%(prog)s RUNS... [out=FOLDER]",
        description="Collect the records (result.json) of runs into runs.csv, runs.parquet, means.csv, report.md "
        f"and the leaderboard {PAGE}, which opens from a file and needs no network.",
        epilog="out= is where they go, else report. Example: python -m backdoor.report outputs multirun out=report",
    )
    parser.add_argument("words", nargs="+", metavar="RUNS", help="folders, searched for runs at any depth")
    try:
        report(*read_words(parser.parse_args().words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


def read_words(words: Sequence[str]) -> tuple[list[Path], Path]:
    """The folders with runs, and the folder to write into.

    Raises:
        UserError: no folder with runs was named.
    """
    # Hydra's folders may have an equals sign in their names, so nothing else is taken for a setting.
    folders = [Path(word) for word in words if not word.startswith(OUT)]
    outs = [word.removeprefix(OUT) for word in words if word.startswith(OUT)]
    if not folders or not all(outs):
        raise UserError(
            "expected folders with runs and perhaps out=FOLDER: python -m backdoor.report outputs out=report"
        )
    return folders, Path(outs[-1] if outs else "report")


def report(folders: Sequence[Path], out: Path) -> None:
    """Collect, write, and say so.

    Raises:
        UserError: a library is not installed; a folder is not there; no record can be used; `out` is not writable.
    """
    try:
        from backdoor.report.page import leaderboard
        from backdoor.report.tables import cells_of, frame_of, write_tables
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise UserError(f"backdoor.report: needs {error.name}; pip install 'backdoor[report]'") from None
    start = time.perf_counter()
    found = collect(folders)
    for folder, reason in found.skipped.items():
        print(f"skipped: {one_line(shown(folder))}: {one_line(reason)}", file=sys.stderr)
    if not found.rows:
        names = ", ".join(map(str, folders))
        raise UserError(f"{names}: no record of a finished run found; name folders in which runs have ended")
    rows = newest(found.rows)
    if len(rows) < len(found.rows):
        print(f"{count(len(found.rows) - len(rows), 'record')} left out: a newer one has the same settings and seed")
    try:
        out.mkdir(parents=True, exist_ok=True)
        runs = frame_of(rows, out)
        cells = cells_of(runs)
        files = write_tables(runs, cells, out)
        (out / PAGE).write_text(leaderboard(runs, cells, out, len(found.skipped)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"out={out}: expected a writable folder, got: {error.strerror or error}") from None
    print(
        f"{count(len(rows), 'run')} in {count(cells.height, 'cell')}, {time.perf_counter() - start:.1f} s: "
        f"{', '.join(file.name for file in files)}"
    )
    print(f"Leaderboard: {one_line(out / PAGE)}")


def count(number: int, what: str) -> str:
    """`1 run`, `8,000 runs`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def one_line(text: object) -> str:
    """What a stranger's file or folder says, without line ends and what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def shown(folder: Path) -> Path:
    """The folder as the user sees it from here."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


if __name__ == "__main__":
    main()
