"""What the tests of the leaderboard share: records that a run could have written, and the command on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backdoor.report.__main__ import main


def record(
    *,
    attack: str = "badnets",
    defense: str = "abl",
    ratio: float | None = 0.1,
    seed: int = 0,
    asr: float = 0.01,
    **more: Any,
) -> dict[str, Any]:
    """The content of a result.json."""
    final = {"c_acc": 0.9, "c_acc_non_target": 0.91, "asr": asr, "r_acc": 0.89, "der": 0.97}
    victim = {"name": "victim", "c_acc": 0.95, "asr": 1.0, "seconds": 50.0, "stored": False}
    names = {"data": "digits", "attack": attack, "defense": defense, "model": "WideResNet-16-1", "seed": seed}
    settings = {"attack": {"name": attack, "ratio": ratio, "ratio_of": "train"}, "defense": {"name": defense}}
    return {
        "schema": 2,
        **names,
        "stages": [victim, {"name": "unlearn", **final, "seconds": 9.0, "stored": False}],
        "final": {**final, "detection": {"precision": 0.98}},
        "started": "2026-11-21T10:00:00+00:00",
        "seconds": 60.0,
        "peak_memory": {"ram": 1_500_000_000},
        "environment": {"git": {"commit": "abc"}},
        "config": {**settings, "seed": seed, "store": {"dir": "/somewhere"}},
    } | more


def write(folder: Path, content: dict[str, Any] | str | None = None, **settings: Any) -> Path:
    """Make a run's folder with that result.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content or record(**settings))
    (folder / "result.json").write_text(text)
    return folder


def run_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """`python -m backdoor.report WORDS`: exit status, output, errors."""
    monkeypatch.setattr("sys.argv", ["report", *words])
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err
