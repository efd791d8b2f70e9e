"""The command line as tests call it, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

SRC = Path(__file__).parents[2] / "src"


# The smallest network and the fewest steps: for tests whose claim does not depend on what is learnt.
QUICK = ("model=small_cnn", "model.width=4", "trainer=debug", "trainer.monitor_images=0", "threads=1")


Completed = subprocess.CompletedProcess[str]


RunCli = Callable[..., Completed]


def environment(cache: Path, **more: str) -> dict[str, str]:
    """The environment of a user without a terminal; PYTHONPATH serves where the package is not installed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HYDRA_FULL_ERROR", "WANDB_MODE")}
    path = os.pathsep.join(part for part in (str(SRC), os.environ.get("PYTHONPATH", "")) if part)
    return {**kept, "PYTHONPATH": path, "BACKDOOR_CACHE": str(cache), "CI": "true", **more}


def read_json(folder: Path, name: str = "result.json") -> dict[str, Any]:
    """A JSON file of a run's folder."""
    return json.loads((folder / name).read_text())


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The stages of a run without what may differ between equal runs: the time, and who trained it."""
    return [
        {name: value for name, value in stage.items() if name not in ("seconds", "stored", "stored_with")}
        for stage in read_json(folder)["stages"]
    ]
