"""What a stranger could have written into a run's folder: configs, plans, weights, triggers and records."""

# ruff: noqa: E501  (a case a line)
from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from files import Payload
from safetensors.torch import load_file, save_file


def _call(marker: Path) -> dict[str, Any]:
    """A node that would make the marker's folder if it was instantiated."""
    return {"_target_": "os.mkdir", "_args_": [str(marker)]}


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# Harmless as they are: content that is read as it was, or an option of Hydra that changes nothing.
# (Four bytes of an npz may hit the copy of a size in a header, which nothing reads; the arrays have checksums.)
EITHER = ("_convert_ of the data", "four bytes at a third", "four bytes at the end")

# name -> change of the config as plain values
CONFIGS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "the trigger's _target_ os.mkdir": lambda run, marker: run["attack"].update(trigger=_call(marker)),
    "a group's trigger os.mkdir": lambda run, marker: run["attack"]["groups"]["poison"].update(trigger=_call(marker)),
    "the data's _target_ os.mkdir": lambda run, marker: run["data"].update(_call(marker)),
    "the model's _target_ os.mkdir": lambda run, marker: run["model"].update(_call(marker)),
    "the attack's _target_ os.mkdir": lambda run, marker: run["attack"].update(_call(marker)),
    "a stage's _target_ os.mkdir": lambda run, marker: run["attack"].update(stages={"one": _call(marker)}, more=_call(marker)),
    "_target_ a list": lambda run, marker: run["model"].update(_target_=["os.mkdir", str(marker)]),
    "_target_ a mapping": lambda run, marker: run["model"].update(_target_={"_target_": "os.mkdir"}),
    "_target_ null": lambda run, marker: run["model"].update(_target_=None),
    "_target_ a number": lambda run, marker: run["model"].update(_target_=5),
    "_target_ with a space": lambda run, marker: run["model"].update(_target_="backdoor.models.small_cnn os.mkdir"),
    "_partial_ of the model": lambda run, marker: run["model"].update(_partial_=True),
    "_partial_ of the trigger": lambda run, marker: run["attack"]["trigger"].update(_partial_=True),
    "_recursive_ of the attack": lambda run, marker: run["attack"].update(_recursive_=False),
    "_convert_ of the data": lambda run, marker: run["data"].update(_convert_="none"),
    "_args_ of the model": lambda run, marker: run["model"].update(_args_=[_call(marker)]),
    "an interpolation": lambda run, marker: run["data"].update(name="${oc.env:HOME}"),
    "an interpolation as a key": lambda run, marker: run["model"].update({"${oc.env:HOME}": 1}),
    "a key too many": lambda run, marker: run["model"].update(more=1),
    "keys that are numbers": lambda run, marker: run["model"].update({1: 2}),
    "a deep list": lambda run, marker: run["model"].update(width=_deep(300)),
    "no attack": lambda run, marker: run.pop("attack"),
    "no groups": lambda run, marker: run["attack"].pop("groups"),
    "groups a list": lambda run, marker: run["attack"].update(groups=[1]),
    "a group null": lambda run, marker: run["attack"]["groups"].update(poison=None),
    "a ratio of 7": lambda run, marker: run["attack"]["groups"]["poison"].update(ratio=7),
    "seed a word": lambda run, marker: run.update(seed="x"),
    "seed null": lambda run, marker: run.update(seed=None),
    "reserved a list": lambda run, marker: run.update(reserved=[1]),
    "data a list": lambda run, marker: run.update(data=[1]),
    "data's name a path": lambda run, marker: run["data"].update(name="../../x"),
    "width 1.5": lambda run, marker: run["model"].update(width=1.5),
    "width of 10^9": lambda run, marker: run["model"].update(width=10**9),
    "image size of 10^6": lambda run, marker: run["data"].update(image_size=10**6),
    "another model": lambda run, marker: run["model"].update(width=16),
    "target 99": lambda run, marker: run["attack"].update(target=99, label_map={"_target_": "backdoor.attacks.AllToOne", "target": 99}),
}  # fmt: skip


def _bomb(text: str, marker: Path) -> bytes:
    """Nine levels of nine aliases each, as a value of the model."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return ("\n".join(lines) + "\n" + text.replace("\nmodel:\n", "\nmodel:\n  more: *a9\n")).encode()


# name -> bytes of config.yaml
TEXTS: dict[str, Callable[[str, Path], bytes]] = {
    "aliases that expand without end": _bomb,
    "an alias of itself": lambda text, marker: text.replace("\nmodel:\n", "\nmodel: &m\n  more: *m\n").encode(),
    "a date": lambda text, marker: text.replace("seed: 0", "seed: 2020-01-01").encode(),
    "a date in the model": lambda text, marker: text.replace("\nmodel:\n", "\nmodel:\n  more: 2020-01-01\n").encode(),
    "bytes": lambda text, marker: text.replace("\nmodel:\n", "\nmodel:\n  more: !!binary aGk=\n").encode(),
    "a set": lambda text, marker: text.replace("\nmodel:\n", "\nmodel:\n  more: !!set {a, b}\n").encode(),
    "a Python tag": lambda text, marker: (text + f"\nmore: !!python/object/apply:os.mkdir ['{marker}']\n").encode(),
    "deep nesting": lambda text, marker: (text + "\nmore: " + "[" * 20_000 + "]" * 20_000 + "\n").encode(),
    "deep nesting of the model": lambda text, marker: text.replace("\nmodel:\n", "\nmodel:\n  more: " + "[" * 400 + "]" * 400 + "\n").encode(),
    "no UTF-8": lambda text, marker: text.encode() + b"\nmore: \xff\xfe\n",
    "a NUL": lambda text, marker: text.encode() + b"\nmore: \x00\n",
    "empty": lambda text, marker: b"",
    "a list": lambda text, marker: b"- 1\n- 2\n",
    "two documents": lambda text, marker: (text + "\n---\na: 1\n").encode(),
    "100 MB": lambda text, marker: text.encode() + b"\nmore: [" + b"1," * 50_000_000 + b"1]\n",
    "an infinite number": lambda text, marker: text.replace("reserved: 0.1", "reserved: .inf").encode(),
    "no number": lambda text, marker: text.replace("reserved: 0.1", "reserved: .nan").encode(),
}  # fmt: skip


def _arrays(path: Path, **change: Any) -> None:
    """The plan with other arrays."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    arrays.update({name: make(arrays[name]) for name, make in change.items()})
    np.savez_compressed(path, **{name: value for name, value in arrays.items() if value is not None})


def _flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    for place in range(int(share * len(data)), min(int(share * len(data)) + 4, len(data))):
        data[place] ^= 0xFF
    path.write_bytes(data)


def _encrypted(path: Path) -> None:
    """Set the flag of encryption in every header of the zip."""
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(mark, place + 4)
    path.write_bytes(data)


def _zip_bomb(path: Path, gigabytes: int = 12) -> None:
    """An array of zeros that fills the memory once it is read."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": (gigabytes * 2**27,)})
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, value in members.items():
            if name != "rows.npy":
                new.writestr(name, value)
        with new.open("rows.npy", "w", force_zip64=True) as file:
            file.write(head.getvalue())
            zeros = bytes(2**24)
            for _ in range(gigabytes * 2**6 // 16):  # a sixteenth of what the header says: reading it is long enough
                file.write(zeros)


def _pickled_array(path: Path, marker: Path) -> None:
    _arrays(path, rows=lambda rows: np.array([Payload(marker)], dtype=object))


# name -> change of plan.npz
PLANS: dict[str, Callable[[Path, Path], Any]] = {
    "four bytes at a tenth": lambda path, marker: _flip(path, 0.1),
    "four bytes at a third": lambda path, marker: _flip(path, 0.33),
    "four bytes at a half": lambda path, marker: _flip(path, 0.5),
    "four bytes at the end": lambda path, marker: _flip(path, 0.97),
    "half of it": lambda path, marker: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, marker: path.write_bytes(b""),
    "garbage": lambda path, marker: path.write_bytes(b"PK\x03\x04" + bytes(range(256))),
    "encrypted": lambda path, marker: _encrypted(path),
    "an array of objects": _pickled_array,
    "a zip bomb": lambda path, marker: _zip_bomb(path),
    "roles out of range": lambda path, marker: _arrays(path, role=lambda role: role + 5),
    "roles negative": lambda path, marker: _arrays(path, role=lambda role: role - 1),
    "roles of floats": lambda path, marker: _arrays(path, role=lambda role: role + 0.5),
    "role shorter": lambda path, marker: _arrays(path, role=lambda role: role[:3]),
    "labels shorter": lambda path, marker: _arrays(path, labels=lambda labels: labels[:3]),
    "labels out of range": lambda path, marker: _arrays(path, labels=lambda labels: labels + 99),
    "labels negative": lambda path, marker: _arrays(path, labels=lambda labels: labels - 1),
    "rows out of range": lambda path, marker: _arrays(path, rows=lambda rows: rows + 10**6),
    "rows negative": lambda path, marker: _arrays(path, rows=lambda rows: -rows - 1),
    "rows twice": lambda path, marker: _arrays(path, rows=lambda rows: rows * 0 + rows[0]),
    "rows in two dimensions": lambda path, marker: _arrays(path, rows=lambda rows: rows[:, None]),
    "rows of floats": lambda path, marker: _arrays(path, rows=lambda rows: rows + 0.5),
    "rows of words": lambda path, marker: _arrays(path, rows=lambda rows: rows.astype(str)),
    "no rows in it": lambda path, marker: _arrays(path, rows=lambda rows: None),
    "total 7": lambda path, marker: _arrays(path, total=lambda total: np.array(7)),
    "total negative": lambda path, marker: _arrays(path, total=lambda total: np.array(-1)),
    "total a list": lambda path, marker: _arrays(path, total=lambda total: np.array([1, 2])),
    "total of 10^15": lambda path, marker: _arrays(path, total=lambda total: np.array(10**15)),
    "other digests": lambda path, marker: _arrays(path, digests=lambda digests: np.array(["0" * 64, "1" * 64])),
    "roles of other names": lambda path, marker: _arrays(path, roles=lambda roles: np.array(["<b>"])),
    "no roles": lambda path, marker: _arrays(path, roles=lambda roles: roles[:0]),
}  # fmt: skip


def _tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """The same file with other tensors, not through a hard link."""
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def _fill(tensors: dict[str, torch.Tensor], value: float) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = torch.full_like(tensor, value)


def _bytes(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _pickle(path: Path, marker: Path) -> None:
    path.unlink()
    torch.save({"state_dict": Payload(marker)}, path)


def _last(tensors: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    name = sorted(name for name, value in tensors.items() if value.dim())[-1]
    tensors[name] = change(tensors[name]).contiguous()


# name -> change of a safetensors file
WEIGHTS: dict[str, Callable[[Path, Path], Any]] = {
    "a pickle that runs code": _pickle,
    "NaN": lambda path, marker: _tensors(path, lambda tensors: _fill(tensors, float("nan"))),
    "Inf": lambda path, marker: _tensors(path, lambda tensors: _fill(tensors, float("inf"))),
    "another shape": lambda path, marker: _tensors(path, lambda tensors: _last(tensors, lambda value: value[None])),
    "a tensor more": lambda path, marker: _tensors(path, lambda tensors: tensors.update(more=torch.ones(2))),
    "a tensor less": lambda path, marker: _tensors(path, lambda tensors: tensors.pop(sorted(tensors)[0])),
    "no tensors": lambda path, marker: _tensors(path, lambda tensors: tensors.clear()),
    "half of it": lambda path, marker: _bytes(path, path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, marker: _bytes(path, b""),
    "a header of 2^62 bytes": lambda path, marker: _bytes(path, (2**62).to_bytes(8, "little") + b"{}"),
    "a header that is no JSON": lambda path, marker: _bytes(path, (8).to_bytes(8, "little") + b"\xff" * 8),
}
TRIGGERS: dict[str, Callable[[Path, Path], Any]] = {
    **WEIGHTS,
    "gone": lambda path, marker: path.unlink(),
    "other numbers": lambda path, marker: _tensors(path, lambda tensors: _last(tensors, lambda value: value + 1)),
}


def _record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change result.json."""
    record = json.loads((folder / "result.json").read_text())
    change(record)
    (folder / "result.json").write_text(json.dumps(record))


def _instead(folder: Path, make: Callable[[Path], Any], name: str = "result.json") -> None:
    """Something else in the place of a file."""
    (folder / name).unlink()
    make(folder / name)


# name -> what is right, and the change of the run's folder
RECORDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "an honest run": ("accepted", lambda folder: None),
    "a FIFO": ("skipped", lambda folder: _instead(folder, os.mkfifo)),
    "a link to /dev/zero": ("skipped", lambda folder: _instead(folder, lambda path: path.symlink_to("/dev/zero"))),
    "a link to nothing": ("skipped", lambda folder: _instead(folder, lambda path: path.symlink_to("/nowhere"))),
    "a folder": ("skipped", lambda folder: _instead(folder, os.mkdir)),
    "status a FIFO, no result": ("skipped", lambda folder: (_instead(folder, os.mkfifo, "status.json"), (folder / "result.json").unlink())),
    "20 GB of nothing": ("skipped", lambda folder: os.truncate(folder / "result.json", 20 * 2**30)),
    "deep nesting": ("skipped", lambda folder: (folder / "result.json").write_text("[" * 200_000 + "]" * 200_000)),
    "a list": ("skipped", lambda folder: (folder / "result.json").write_text("[]")),
    "half of it": ("skipped", lambda folder: (folder / "result.json").write_bytes((folder / "result.json").read_bytes()[:200])),
    "no UTF-8": ("skipped", lambda folder: (folder / "result.json").write_bytes(b'{"schema": "\xff"}')),
    "a number with 10,000 digits": ("skipped", lambda folder: (folder / "result.json").write_text('{"schema": ' + "9" * 10_000 + "}")),
    "a seed of 10^30": ("skipped or accepted", lambda folder: _record(folder, lambda record: record.update(seed=10**30))),
    "a C-Acc of 7": ("skipped", lambda folder: _record(folder, lambda record: record["final"].update(c_acc=7))),
    "a C-Acc of NaN": ("skipped", lambda folder: _record(folder, lambda record: record["final"].update(c_acc=float("nan")))),
    "stages null": ("skipped", lambda folder: _record(folder, lambda record: record.update(stages=None))),
    "HTML in the attack's name": ("accepted or skipped", lambda folder: _record(folder, lambda record: record.update(attack="<script>hostile()</script>"))),
    "HTML in the folder's name": ("accepted or skipped", lambda folder: folder.rename(folder.with_name("<img src=hostile>"))),
    "a folder name that is not UTF-8": ("accepted or skipped", lambda folder: os.rename(os.fsencode(folder), os.fsencode(folder) + b"\xff\xfe")),
    "a lone surrogate in a name": ("accepted or skipped", lambda folder: _record(folder, lambda record: record.update(attack="\ud800"))),
}  # fmt: skip
