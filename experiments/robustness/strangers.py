"""Folders of strangers, for `attack.run=` and `backdoor.report`: refused or skipped, fast, and nothing of them runs.

python experiments/robustness/strangers.py [--csv FILE]

A finished run's folder is copied and one file of it is written by somebody else. Right: one clear line within 20 s
(`clear`); of the report, that it names the folder, leaves it out and ends well (`skipped`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from common import SMALL, Ended, Row, arguments, came_to, close, command, last_word, prepare, report, run, tell
from hostile import CONFIGS, EITHER, PLANS, RECORDS, TEXTS, TRIGGERS, WEIGHTS

LIMIT_S = 20.0
RUN = (*SMALL, "reserved=0.1", "store.dir=store", "hydra.run.dir=run")
READ = (*(word for word in SMALL if not word.startswith("model")), "defense=ft", "attack=external",
        "attack.run=theirs", "store.dir=store", "hydra.run.dir=mine")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What somebody wrote: `damage` gets the folder `theirs` and a marker that only foreign code would make."""

    group: str
    name: str
    damage: Callable[[Path, Path], Any]
    base: str = "badnets"
    expected: str = "clear"


def written(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    """Change config.yaml as plain values."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def cases() -> Iterator[Case]:
    """All that `attack.run` reads."""
    yield Case("control", "an honest run", lambda folder, marker: None, expected="accepted")
    for name, change in CONFIGS.items():
        yield Case("config.yaml", name, lambda folder, marker, change=change: written(
            lambda config: change(config, marker), folder))  # fmt: skip
    for name, make in TEXTS.items():
        yield Case("config.yaml's text", name, lambda folder, marker, make=make: (folder / "config.yaml").write_bytes(
            make((folder / "config.yaml").read_text(), marker)))  # fmt: skip
    for group, file, ways, base in (
        ("plan.npz", "plan.npz", PLANS, "badnets"),
        ("weights", "weights/victim.safetensors", WEIGHTS, "badnets"),
        ("trigger.safetensors", "trigger.safetensors", TRIGGERS, "warp"),
    ):
        for name, way in ways.items():
            yield Case(group, name, lambda folder, marker, way=way, file=file: way(folder / file, marker), base)
    for file in ("config.yaml", "status.json", "plan.npz", "weights/victim.safetensors"):
        for name, target in (("a link to nothing", "/nowhere"), ("a link to /dev/zero", "/dev/zero"),
                             ("a FIFO", None), ("a folder", ""), ("a link to itself", "itself")):  # fmt: skip
            yield Case(file, name, lambda folder, marker, file=file, target=target: special(folder / file, target))


def special(path: Path, target: str | None) -> None:
    """Put something that is no regular file in the place of one."""
    path.unlink()
    if target is None:
        os.mkfifo(path)
    elif not target:
        path.mkdir()
    else:
        path.symlink_to(path.name if target == "itself" else target)


def verdict(ended: Ended, marker: Path) -> str:
    if marker.exists():
        return "FOREIGN CODE RAN"
    return came_to(ended)


def read_runs(place: Path) -> Iterator[Row]:
    """Every hostile folder, given to `attack.run`."""
    for name, words in (("badnets", ()), ("warp", ("trigger@attack.trigger=warp",))):
        ended = run(command(*RUN, *words), place / name)
        if ended.status:
            raise SystemExit(f"the run itself fails: {ended.err}")
    for number, case in enumerate(cases()):
        folder = place / f"run{number}"
        shutil.copytree(place / case.base / "run", folder / "theirs")
        case.damage(folder / "theirs", folder / "touched")
        ended = run(command(*READ), folder, LIMIT_S if case.expected == "clear" else 120.0)
        what = verdict(ended, folder / "touched")
        right = "clear or accepted" if case.name in EITHER else case.expected
        yield Row("strangers", case.group, case.name, right, what, what in right.split(" or "), ended.seconds,
                  last_word(ended))  # fmt: skip
        shutil.rmtree(folder)


def read_records(place: Path) -> Iterator[Row]:
    """Every hostile record, beside an honest one, given to `backdoor.report`."""
    for number, (name, (expected, make)) in enumerate(RECORDS.items()):
        folder = place / f"report{number}"
        shutil.copytree(place / "badnets" / "run", folder / "runs" / "honest")
        shutil.copytree(place / "badnets" / "run", folder / "runs" / "theirs")
        make(folder / "runs" / "theirs")
        ended = run(report("runs", "out=report"), folder, LIMIT_S)
        what = came_to(ended)
        if what == "accepted" and "skipped: " in ended.err:
            what = "skipped"
        pages = [path.read_text(errors="replace") for path in folder.glob("report/*.html")]
        if any("<script>hostile" in page or "<img src=hostile" in page for page in pages):
            what = "HTML let through"
        yield Row("strangers", "report", name, expected, what, what in expected.split(" or "), ended.seconds,
                  last_word(ended))  # fmt: skip
        shutil.rmtree(folder)


def measure(place: Path) -> list[Row]:
    rows = []
    for part in (read_runs, read_records):
        for row in part(place):
            rows.append(row)
            tell([row], place)
    return rows


def main() -> None:
    args = arguments(__doc__).parse_args()
    prepare()
    with tempfile.TemporaryDirectory(prefix="robust-") as place:
        rows = measure(Path(place))
    close(rows, args.csv)


if __name__ == "__main__":
    main()
