"""Strangers' npz files: whatever is wrong with one, it is refused in one line, and soon."""

from __future__ import annotations

import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backdoor.attacks import PoisonPlan
from backdoor.attacks.rows import named_rows
from backdoor.data.pictures import read_npz
from backdoor.errors import UserError
from backdoor.store.npz import PLAN_BYTES, open_npz, save_npz
from helpers.archives import GOOD, archive, data, npy


def claiming(shape: str, dtype: str) -> bytes:
    """A header without the elements that it claims."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def flipped(whole: bytes) -> bytes:
    """A byte in the middle of the first array's compressed content."""
    damaged = bytearray(whole)
    damaged[60] ^= 0xFF
    return bytes(damaged)


def checksum(whole: bytes) -> bytes:
    """Another value in an array that is not compressed."""
    damaged = bytearray(whole)
    damaged[damaged.find(GOOD["rows"].tobytes())] ^= 2
    return bytes(damaged)


def flagged(whole: bytes) -> bytes:
    """Every member says that it is encrypted."""
    damaged = bytearray(whole)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = damaged.find(mark)
        while at >= 0:
            damaged[at + place] |= 1
            at = damaged.find(mark, at + 4)
    return bytes(damaged)


def whole() -> bytes:
    return archive(**{name: npy(array) for name, array in GOOD.items()})


def read_plan(path: Path) -> tuple[PoisonPlan, tuple[str, ...]]:
    return PoisonPlan.load(path, "attack.run", num_classes=10), PoisonPlan.digests(path, "attack.run")


def with_rows(content: bytes, way: int = zipfile.ZIP_DEFLATED) -> bytes:
    return archive(way, **{name: npy(array) for name, array in GOOD.items()} | {"rows": content})


class Evil:
    """Would leave a mark if it were unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("unpickled",)


DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "garbage": lambda: b"PK\x03\x04 no zip",
    "an npy": lambda: npy(np.arange(3)),
    "half": lambda: whole()[:200],
    "flipped": lambda: flipped(whole()),
    "encrypted": lambda: flagged(whole()),
    "objects": lambda: with_rows(npy(np.array([Evil()], dtype=object))),
    "no array": lambda: with_rows(b"rows"),
    "deep": lambda: with_rows(claiming("(" * 4000, "<i8")),
    "more than it holds": lambda: with_rows(claiming("(1000000000000,)", "<i8")),
    "countless": lambda: with_rows(claiming("(1000000000000,)", "<U0")),
    "negative": lambda: with_rows(claiming("(-5,)", "<i8")),
    "lzma": lambda: with_rows(npy(GOOD["rows"]), zipfile.ZIP_LZMA),
    "bomb": lambda: with_rows(bytes(PLAN_BYTES + 1)),
    "wrong checksum": lambda: checksum(archive(zipfile.ZIP_STORED, **{"rows": npy(GOOD["rows"])})),
    "more bytes than the header says": lambda: with_rows(npy(GOOD["rows"]) + b"more"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_or_hostile_file_is_one_line_and_soon(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.npz"
    path.write_bytes(DAMAGED[damage]())
    began = time.process_time()
    with pytest.raises(UserError, match=rf"attack.run={path}: expected an npz of plain arrays") as caught:
        PoisonPlan.load(path, "attack.run")
    assert time.process_time() - began < 1
    assert "\n" not in str(caught.value)
    assert not Path("unpickled").exists()
    with pytest.raises(UserError, match=rf"attack.poisoned_rows={path}: "):
        named_rows(path, data(), "attack.poisoned_rows")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "plan.npz")
    for path, said in ((tmp_path / "plan.npz", "no regular file"), (tmp_path / "none.npz", "no such file")):
        with pytest.raises(UserError, match=said):
            PoisonPlan.load(path)


def test_images_larger_than_the_memory_are_not_unpacked(tmp_path):
    path, head = tmp_path / "images.npz", claiming("(100000000, 3, 1000, 1000)", "|u1")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("images.npy", head)
        made.infolist()[0].file_size = len(head) + 3 * 10**14  # what the directory at the end of the file will say
        made.writestr("labels.npy", npy(np.zeros(3, dtype=np.int64)))
    with pytest.raises(UserError, match=rf"data.train={path}: .*images.npy has 300,000,000,000,088 bytes; at most"):
        read_npz(path, "data.train")


def test_an_error_of_the_reader_is_not_taken_for_the_files(tmp_path):
    save_npz(tmp_path / "plan.npz", **GOOD)
    with pytest.raises(ZeroDivisionError), open_npz(tmp_path / "plan.npz", "it"):
        _ = 1 / 0


WRONG = {
    "role below": ({"role": np.array([0, -1, 1, 1])}, "role out of range or negative: expected 0 to 1, got -1 to 1"),
    "role above": ({"role": np.array([0, 2, 1, 1])}, "role out of range or negative: expected 0 to 1, got 0 to 2"),
    "no roles": ({"roles": np.array([], dtype=np.str_)}, "role out of range"),
    "rows below": ({"rows": np.array([-1, 4, 5, 7])}, "rows out of range or negative: expected 0 to 8"),
    "rows above": ({"rows": np.array([1, 4, 5, 9])}, "rows out of range or negative: expected 0 to 8"),
    "rows twice": ({"rows": np.array([1, 4, 4, 7])}, "rows: a row is named twice"),
    "labels below": ({"labels": np.array([0, -2, 3, 2])}, "labels out of range or negative: expected 0 to 9"),
    "labels above": ({"labels": np.array([0, 10, 3, 2])}, "labels out of range or negative: expected 0 to 9"),
    "lengths": ({"labels": np.array([0, 0, 3])}, "expected as many rows as labels and roles, got 4, 3 and 4"),
    "floats": ({"rows": np.array([1.0, 4, 5, 7])}, "rows: expected int64"),
    "shape": ({"labels": np.array([[0, 0, 3, 2]])}, "labels: expected int64"),
    "scalar": ({"rows": np.array(1)}, "rows: expected int64"),
    "total": ({"total": np.array([9, 9])}, "total: expected int64"),
    "no total": ({"total": np.array(-1)}, "total: expected from 0 to"),
    "huge": ({"total": np.array(10**15)}, "total: expected from 0 to"),
    "names": ({"roles": np.array([1, 2])}, "roles: expected words, got int64"),
    "lines": ({"roles": np.array(["poison", "a\nb"])}, "roles: expected words"),
    "digests": ({"digests": np.array(3.5)}, "digests: expected words"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_plan_that_says_what_cannot_be_is_refused(tmp_path, fault):
    change, said = WRONG[fault]
    path = tmp_path / "plan.npz"
    save_npz(path, **(GOOD | change))
    with pytest.raises(UserError) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"attack.run={path}: {said}")
