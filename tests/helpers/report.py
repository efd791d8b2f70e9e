"""What the tests of reports share: the stages of a run, its rows, and reading them back."""

from __future__ import annotations

import csv
import json
import struct
import time
from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[2] / "conf"
STAGES = [
    {
        "name": "victim",
        "c_acc": 0.936,
        "c_acc_non_target": 0.93,
        "asr": 0.999,
        "r_acc": 0.001,
        "seconds": 61.04,
    },
    {"name": "isolate", "c_acc": 0.9, "asr": 1.0, "detection": {"precision": 0.98}, "seconds": 2.0},
    {"name": "unlearn", "c_acc": 0.9, "asr": 0.012, "r_acc": 0.89, "der": 0.97, "seconds": 3.0},
    {"name": "unlearn_lr0", "c_acc": 0.92, "asr": 0.99, "der": 0.5, "seconds": 3.0, "control": True},
]
RESULT = {"schema": 1, "stages": STAGES, "final": {"c_acc": 0.9, "asr": 0.012, "r_acc": 0.89, "der": 0.97}}
ROWS: list[dict[str, float | int | str]] = [
    {"stage": "victim", "epoch": 0, "loss": 1.25},
    {"stage": "victim", "epoch": 1, "loss": 0.5, "c_acc": 0.9},
    {"stage": "unlearn", "epoch": 0, "loss": -0.5, "asr": 0.25},
]


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def wandb_records(folder: Path) -> list[Any]:
    """The records of the one .wandb file: LevelDB's log format, 32 KiB blocks with pieces of records."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, piece, records = path.read_bytes(), 7, b"", []
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, part = struct.unpack("<IHB", data[at : at + 7])
        piece += data[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # a whole record, or the last piece of one
            records.append(wandb_internal_pb2.Record.FromString(piece))
            piece = b""
    return records


def kind(record: Any) -> str:
    return str(record.WhichOneof("record_type"))


def ended(folder: Path) -> list[Any]:
    """The records once W&B's own process has written the last one, shortly after the run has finished."""
    deadline = time.monotonic() + 30
    while not (records := wandb_records(folder)) or kind(records[-1]) != "exit":
        assert time.monotonic() < deadline, [kind(record) for record in records]
        time.sleep(0.05)
    return records


def items(updates: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
