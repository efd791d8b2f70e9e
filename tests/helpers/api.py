"""What the tests of the Python API share: quick settings, and a small data set of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from helpers.command import QUICK


def settings(folder: Path, name: str = "run", **more: Any) -> dict[str, Any]:
    """Keywords of `bd.run`: a store and a run's folder below `folder`."""
    return {"store.dir": folder / "store", "hydra.run.dir": folder / name, **more}


def arrays(count: int = 200, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, H, W) digits and their labels int64 (N,)."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images[:count].reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    return pixels.repeat(side // 8, axis=1).repeat(side // 8, axis=2), labels[:count].astype(np.int64)


__all__ = ["QUICK", "arrays", "settings"]
