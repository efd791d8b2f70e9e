"""Writing decoded pixels: chunk by chunk, hashed on the way, described when all is on the disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from backdoor.data.imageset import Chunk

FORMAT = 1
HEADER_BYTES = 128  # of images.npy: fixed, so that the number of images can be filled in at the end
FILES = ("images.npy", "labels.npy")


class Writer:
    """Appends chunks to `<folder>/images.npy`; memory never holds more than a chunk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.digest, self.skipped = folder, "", 0
        self.labels: list[np.ndarray] = []
        self.shape: tuple[int, ...] = ()
        self.content = hashlib.sha256()

    def __enter__(self) -> Writer:
        self.file = open(self.folder / "images.npy", "wb")
        self.file.write(bytes(HEADER_BYTES))
        return self

    def append(self, chunk: Chunk) -> None:
        """Write the next images; an error of the disk surfaces here, not as a bus error of a memory map."""
        self.skipped += chunk.skipped
        if len(chunk.images) == 0:
            return
        images = np.ascontiguousarray(chunk.images)
        self.shape = self.shape or images.shape[1:]
        if images.dtype != np.uint8 or images.shape[1:] != self.shape or len(images) != len(chunk.labels):
            raise ValueError(f"chunk: expected uint8 (n, *{self.shape}), got {images.dtype} {images.shape}")
        self.content.update(images.data)
        self.file.write(images.data)
        self.labels.append(chunk.labels.astype(np.int64))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.file:
            if kind is None:
                self.finish()

    def finish(self) -> None:
        """Fill in the header, force everything to the disk, then describe it in meta.json."""
        labels = np.concatenate(self.labels)
        shape = (len(labels), *self.shape)
        self.file.seek(0)
        self.file.write(npy_header(shape))
        self.file.flush()
        os.fsync(self.file.fileno())
        np.save(self.folder / "labels.npy", labels, allow_pickle=False)
        self.digest = close_digest(self.content, labels, shape)
        meta = {"format": FORMAT, "digest": self.digest, "shape": shape, "stamps": stamps_of(self.folder)}
        write_json(self.folder / "meta.json", meta)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The first 128 bytes of a version 1.0 .npy file of C-ordered uint8 (numpy.lib.format)."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    start = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return start + text.ljust(HEADER_BYTES - 11) + b"\n"


def close_digest(content: Any, labels: np.ndarray, shape: tuple[int, ...]) -> str:
    """Hex digest of pixels (hashed already), labels and shape."""
    content.update(np.ascontiguousarray(labels, dtype="<i8").data)
    content.update(json.dumps([int(size) for size in shape]).encode())
    return content.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one.

    Unlike the store's, which writes under a lock: processes that share decoded images may write the same file at once.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def stamps_of(folder: Path) -> list[list[int]]:
    """[size in bytes, time of change in ns] of each file."""
    stats = [(folder / name).stat() for name in FILES]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
