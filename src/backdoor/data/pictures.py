"""Images that come as whole arrays: npz files, and the formats that torchvision and scikit-learn read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from backdoor.data.decode import CHUNK_BYTES, DECODER, stamp_of
from backdoor.data.imageset import Chunk
from backdoor.data.reserve import Limit
from backdoor.errors import UserError
from backdoor.store.npz import open_npz

SAVED = "write it with numpy.savez(path, images=..., labels=...), or give a folder of images"
LUMA = (19595, 38470, 7471)  # ITU-R 601 in 1/65536, the integers that PIL uses


@dataclass(frozen=True)
class ArrayPictures:
    """Images that `read` returns at once.

    Args:
        key: names the content; must change when it does.
        read: -> uint8 (N, C, H, W) images and int64 (N,) labels; called only if the cache has no copy.
        channels, size: as in `FilePictures`; None = as is.
        limit: at most so many images.
    """

    title: str
    key: str
    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    channels: int | None = None
    size: tuple[int, int] | None = None
    limit: Limit = field(default_factory=Limit)

    @property
    def total(self) -> int | None:
        return self.limit.count

    def signature(self) -> str:
        """Hash of the key and of the way to convert."""
        parts = [DECODER, self.key, self.channels, self.size, self.limit.count, self.limit.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """Convert channels and size of a few MB at a time."""
        images, labels = self.read()
        rows = self.limit.rows(torch.from_numpy(labels)).numpy()
        step = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            yield Chunk(resize(to_channels(images[part], self.channels), self.size), labels[part])


def to_channels(images: np.ndarray, channels: int | None) -> np.ndarray:
    """uint8 (n, 1|3, H, W) -> (n, channels, H, W): grey repeated, or colour to luma as PIL rounds it."""
    if channels is None or images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(3, axis=1)
    weights = np.array(LUMA, np.uint32)[:, None, None]
    luma = (images.astype(np.uint32) * weights).sum(axis=1, keepdims=True) + 32768 >> 16
    return luma.astype(np.uint8)


def resize(images: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 (n, C, H, W) -> (n, C, *size), bilinear, antialiased; within one grey level of PIL's."""
    if size is None or images.shape[2:] == size:
        return images
    batch = torch.from_numpy(np.ascontiguousarray(images))
    return F.interpolate(batch, size=size, mode="bilinear", antialias=True).numpy()


def npz_pictures(
    path: Path,
    setting: str,
    *,
    title: str,
    part: str = "",
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    limit: Limit | None = None,
) -> ArrayPictures:
    """The images of an npz, keyed by the file's path, size and times.

    Args:
        part: `train` or `test`: the arrays may be named so, see `read_npz`.

    Raises:
        UserError: no such file.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file; expected an npz with the arrays images and labels")
    key = f"npz:{path.resolve()}:{stamp_of(path.stat())}:{part}"
    return ArrayPictures(title, key, lambda: read_npz(path, setting, part), channels, size, limit or Limit())


def read_npz(path: Path, setting: str, part: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The arrays `images` and `labels` -> uint8 (N, C, H, W) and int64 (N,).

    Args:
        part: `train` or `test`; the arrays `train_images` and `train_labels` (one file for both parts, as MedMNIST
            has it) then come before `images` and `labels`.

    Raises:
        UserError: not an npz, pickled objects, missing arrays, wrong dtype or shape.
    """
    with open_npz(path, setting, hint=SAVED) as file:
        prefix = f"{part}_" if part and not {"images", "labels"} <= set(file.files) else ""
        names = [f"{prefix}images", f"{prefix}labels"]
        if prefix and not any(name in file.files for name in names):
            names = ["images", "labels"]  # those of a file for each part: what the message should ask for
        missing = [name for name in names if name not in file.files]
        if missing:
            found = ", ".join(file.files)
            raise UserError(f"{setting}={path}: lacks the array {missing[0]}; it has: {found or 'nothing'}")
        images, labels = (file[name] for name in names)
    return checked_arrays(images, labels, f"{setting}={path}")


def checked_arrays(images: np.ndarray, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images as `to_nchw` takes them and integer labels (N,) or (N, 1) -> (N, C, H, W) and int64 (N,).

    Raises:
        UserError: another dtype or shape.
    """
    images = to_nchw(images, where)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images):
        raise UserError(f"{where}: labels: expected integers ({len(images)},), got {labels.dtype} {labels.shape}")
    return images, labels.astype(np.int64)


def to_nchw(images: np.ndarray, where: str) -> np.ndarray:
    """uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), C of 1 or 3 -> (N, C, H, W); a trailing 1 or 3 is C."""
    expected = "images: expected uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with N > 0 and 1 or 3 channels"
    if images.dtype != np.uint8 or images.size == 0:
        raise UserError(f"{where}: {expected}, got {images.dtype} {images.shape}")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise UserError(f"{where}: {expected}, got {images.dtype} {images.shape}")
