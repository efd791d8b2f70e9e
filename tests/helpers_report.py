"""What the tests of reports share: the stages of a run, its rows, and reading them back."""

from __future__ import annotations

import csv
from pathlib import Path

CONF = Path(__file__).parent.parent / "conf"
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
