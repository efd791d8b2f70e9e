"""npz files, good ones and claims."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import torch

from backdoor.state import Split

GOOD = {
    "rows": np.array([1, 4, 5, 7]),
    "labels": np.array([0, 0, 3, 2]),
    "role": np.array([0, 0, 1, 1]),
    "roles": np.array(["poison", "noise"]),
    "total": np.array(9),
    "covers": np.array(["noise"]),
    "digests": np.array(["a" * 64, "b" * 64]),
}


def archive(way: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    """A zip with members of our choice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", way) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def data(labels: list[int] | None = None) -> Split:
    """Nine rows; those of the plan have the labels that it gives them."""
    values = torch.tensor(labels or [5, 0, 5, 5, 0, 3, 5, 2, 5])
    return Split.of(torch.arange(9 * 4, dtype=torch.uint8).reshape(9, 1, 2, 2), values)
