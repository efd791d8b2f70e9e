"""Damaged files of the store and of a run's folder: is each noticed, said and made again, to the same numbers?

python experiments/robustness/damage.py [--csv FILE]

A sweep of one job and a run fill a store. Then a copy of it is damaged in one place, and the run is given again. Right:
exit 0, every number and weight as before, bit for bit, a word about it, and no foreign code run (`recovered`); for a
lock that is a folder one clear line. `silent` is the same without a word, `other numbers` what must not be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import SMALL, Ended, Row, arguments, came_to, close, command, last_word, numbers, prepare, run, tell
from files import Payload

# Enough training that the weights say something, and a chain with tensors, groups and weights in its artifacts.
RUN = (*(word for word in SMALL if word != "defense=none"), "defense=abl", "trainer.max_epochs=2",
       "trainer.max_batches=null", "attack=badnets", "store.dir=store")  # fmt: skip
SINGLE = (*RUN, "hydra.run.dir=run")
SWEEP = ("-m", *RUN, "hydra.sweep.dir=sweep")
WORD = re.compile(r"again|damaged|cannot be read|aside|not whole|half.written", re.IGNORECASE)
DEEP = "[" * 100_000 + "]" * 100_000


@dataclass(frozen=True)
class Case:
    """A damage: what is changed in a case's folder, and what is right then."""

    group: str
    name: str
    damage: Callable[[Path], Any]
    expected: str = "recovered"
    words: tuple[str, ...] = SINGLE
    result: str = "run"


def flip(path: Path, share: float = 0.9) -> None:
    """Turn one bit of the byte at that share of the file."""
    data = bytearray(path.read_bytes())
    data[min(int(share * len(data)), len(data) - 1)] ^= 0x40
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text())
    replaced = change(value)
    path.write_text(json.dumps(value if replaced is None else replaced))


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BYTES: dict[str, Callable[[Path], Any]] = {
    "one bit": flip,
    "one bit in its first bytes": lambda path: flip(path, 0.0),
    "half of it": halve,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 16),
    "gone": lambda path: path.unlink(),
    "a folder": as_folder,
    "a FIFO": as_fifo,
}
JSON: dict[str, Callable[[Path], Any]] = {
    "[]": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "{}": lambda path: path.write_text("{}"),
    "5": lambda path: path.write_text("5"),
    "deep nesting": lambda path: path.write_text(DEEP),
    "no UTF-8": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}'),
}
OUTCOME: dict[str, Callable[[Any], Any]] = {
    "history cut": lambda value: value["history"].pop(),
    "history of words": lambda value: value.update(history=["one", "two"]),
    "history null": lambda value: value.update(history=None),
    "seconds a word": lambda value: value.update(seconds="long"),
    "tensors unknown": lambda value: value.update(tensors=["nothing.here"]),
    "tensors null": lambda value: value.update(tensors=None),
    "findings a list": lambda value: value.update(findings=[1]),
    "an accuracy a word": lambda value: value["history"][0].update(c_acc="good"),
}


def retype(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change every tensor of a file."""
    from safetensors.torch import load_file, save_file

    save_file({name: change(value).contiguous() for name, value in load_file(path).items()}, path)


def one(folder: Path, pattern: str) -> Path:
    """The first file that fits."""
    return sorted(folder.glob(pattern))[0]


def pickled(folder: Path) -> None:
    torch.save({"state_dict": Payload(folder / "touched")}, half_made(folder))


def half_made(folder: Path) -> Path:
    """The store as a killed run leaves it: no victim, and the place of its resume point."""
    victim = one(folder, "store/victim/*/artifact.json").parent
    part = victim.with_name(victim.name + ".part")
    shutil.rmtree(victim)
    part.mkdir()
    return part / "resume.ckpt"


def of_file(group: str, pattern: str, ways: dict[str, Callable[[Path], Any]], **more: Any) -> Iterator[Case]:
    """The file of each case, damaged in each way."""
    for name, way in ways.items():
        yield Case(group, name, lambda folder, way=way: way(one(folder, pattern)), **more)


def cases(other: Path) -> Iterator[Case]:
    """All; `other`: the folder of a run with another seed."""

    def nan(value: torch.Tensor) -> torch.Tensor:
        return value * float("nan") if value.is_floating_point() else value

    weights = {
        "swapped for another seed's": lambda path: shutil.copy(one(other, "store/victim/*/*.safetensors"), path),
        "float64": lambda path: retype(path, lambda value: value.double()),
        "NaN": lambda path: retype(path, nan),
    }
    tensors = {"other shapes": lambda path: retype(path, lambda value: value[: len(value) // 2]),
               "float64": lambda path: retype(path, lambda value: value.double())}  # fmt: skip
    yield from of_file("victim's weights", "store/victim/*/model.safetensors", {**BYTES, **weights})
    yield from of_file("a stage's tensors", "store/stage/*/tensors.safetensors", {**BYTES, **tensors})
    yield from of_file("victim's artifact.json", "store/victim/*/artifact.json", {**BYTES, **JSON})
    yield from of_file("victim's outcome.json", "store/victim/*/outcome.json", {**BYTES, **JSON})
    edits = {name: lambda path, change=change: edit(path, change) for name, change in OUTCOME.items()}
    yield from of_file("victim's outcome.json", "store/victim/*/outcome.json", edits)
    points = {name: way for name, way in BYTES.items() if name in ("empty", "garbage", "a folder")}
    for name, way in points.items():
        yield Case("resume point", name, lambda folder, way=way: way(half_made(folder)))
    yield Case("resume point", "a pickle that runs code", pickled)
    foreign = {"a": torch.ones(2)}
    yield Case("resume point", "tensors of something else", lambda folder: torch.save(foreign, half_made(folder)))
    yield Case("locks", "victim's lock a folder", lambda folder: as_folder(one(folder, "store/victim/*.lock")), "clear")
    for name in ("images.npy", "labels.npy", "meta.json"):
        yield from of_file(f"decoded {name}", f"store/data/*/{name}", BYTES, expected="recovered or silent")
    yield from of_file(
        "decoded pointer", "store/data/sources/*.json", {**BYTES, **JSON}, expected="recovered or silent"
    )
    kept = {"words": SWEEP, "result": "sweep/0-badnets-abl", "expected": "recovered or silent"}
    for name in ("result.json", "status.json", "artifact.json"):
        yield from of_file(f"kept {name}", f"store/result/*/{name}", {**BYTES, **JSON}, **kept)
    for name in ("status.json", "result.json", "metrics.csv", "plan.npz"):
        ways = {way: BYTES[way] for way in ("half of it", "garbage", "gone")}
        yield from of_file(f"the run's own {name}", f"run/{name}", ways, expected="recovered or silent")


def came(case: Case, folder: Path, ended: Ended, calm: Any) -> str:
    """What a case came to."""
    if (folder / "touched").exists():
        return "FOREIGN CODE RAN"
    if ended.slow or ended.status:
        return came_to(ended)
    if numbers(folder / case.result) != calm:
        return "other numbers"
    return "recovered" if WORD.search(ended.out + ended.err) else "silent"


def measure(place: Path) -> list[Row]:
    """Damage every kind of file in every way."""
    calm, other = place / "calm", place / "other"
    for folder, words in ((calm, SWEEP), (calm, SINGLE), (other, (*SINGLE, "seed=1"))):
        ended = run(command(*words), folder)
        if ended.status:
            raise SystemExit(f"the run itself fails: {ended.err}")
    again = run(command(*SINGLE), calm)
    if WORD.search(again.out + again.err):
        raise SystemExit(f"an undamaged run says a word of damage: {again.out}{again.err}")
    expected = numbers(calm / "run")
    rows = []
    for number, case in enumerate(cases(other)):
        folder = place / str(number)
        shutil.copytree(calm, folder)
        case.damage(folder)
        if case.words is SWEEP:
            shutil.rmtree(folder / "sweep")
        ended = run(command(*case.words), folder)
        what = came(case, folder, ended, expected)
        rows.append(Row("damage", case.group, case.name, case.expected, what, what in case.expected.split(" or "),
                        ended.seconds, last_word(ended)))  # fmt: skip
        tell(rows[-1:], place)
        shutil.rmtree(folder)
    return rows


def main() -> None:
    args = arguments(__doc__).parse_args()
    prepare()
    with tempfile.TemporaryDirectory(prefix="robust-") as place:
        rows = measure(Path(place))
    close(rows, args.csv)


if __name__ == "__main__":
    main()
