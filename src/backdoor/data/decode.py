"""Image files to uint8 pixels, in parallel."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from backdoor.data.imageset import Chunk
from backdoor.errors import UserError

DECODER = 1  # part of the signature: raise it when the same files would give other pixels
CHUNK_BYTES = 1 << 20  # of decoded pixels a task: small enough for a smooth bar, large enough to hide the overhead
MODES = {1: "L", 3: "RGB"}
# Extension -> Pillow's format: torchvision's, and what else photos come in; of an animation the first frame is read.
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".ppm": "PPM",
    ".bmp": "BMP",
    ".pgm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".pbm": "PPM",
}
FORMATS |= {".avif": "AVIF"} if features.check("avif") else {}


class ImageFile(NamedTuple):
    """A file, its label and (bytes, mtime ns, ctime ns), which tell whether it has changed."""

    path: str
    label: int
    stamp: tuple[int, int, int]


def stamp_of(stat: os.stat_result) -> tuple[int, int, int]:
    """Size and both times of change: unpacking an archive over a file resets its mtime, never its ctime."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@dataclass(frozen=True)
class FilePictures:
    """Images in files, decoded by threads (PIL frees the interpreter lock while it decodes).

    Args:
        setting: what an error message names, for instance `data.root`.
        channels: 3 (everything to RGB) or 1 (everything to grey, ITU-R 601 luma).
        size: (H, W) to resize to (bilinear, antialiased, as torchvision does for PIL images); None = as is.
        on_corrupt: error, or skip and count.
    """

    title: str
    files: Sequence[ImageFile]
    setting: str
    channels: int = 3
    size: tuple[int, int] | None = None
    on_corrupt: str = "error"

    @property
    def total(self) -> int:
        return len(self.files)

    def signature(self) -> str:
        """Hash of paths, labels, sizes, times and of the way to decode."""
        parts = [DECODER, self.channels, self.size, self.on_corrupt]
        content = hashlib.sha256(json.dumps(parts).encode())
        lines = "\n".join(f"{path}\0{label}\0{stamp}" for path, label, stamp in self.files)
        content.update(lines.encode(errors="surrogateescape"))
        return content.hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """Decode in order, at most a few tasks a thread ahead of the reader."""
        shape = self.shape()
        rows = max(1, CHUNK_BYTES // math.prod(shape))
        threads = thread_count()
        runs = [self.files[start : start + rows] for start in range(0, len(self.files), rows)]
        pool = ThreadPoolExecutor(threads)
        decoded = 0
        try:
            ahead = 4 * threads
            pending = deque(pool.submit(self.decode_run, run, shape) for run in runs[:ahead])
            for run in [*runs[ahead:], *[None] * min(ahead, len(runs))]:
                chunk = pending.popleft().result()
                if run is not None:
                    pending.append(pool.submit(self.decode_run, run, shape))
                decoded += len(chunk.images)
                yield chunk
        finally:
            pool.shutdown(cancel_futures=True)
        if decoded == 0:
            raise UserError(self.nothing_left())

    def shape(self) -> tuple[int, int, int]:
        """(C, H, W): as set, else that of the first image that can be read."""
        if self.size is not None:
            return (self.channels, *self.size)
        for file in self.files:
            pixels = self.decode(file)
            if pixels is not None:
                channels, height, width = pixels.shape
                return channels, height, width
        raise UserError(self.nothing_left())

    def decode_run(self, files: Sequence[ImageFile], shape: tuple[int, int, int]) -> Chunk:
        """Consecutive files -> one chunk."""
        images, labels = np.empty((len(files), *shape), np.uint8), np.empty(len(files), np.int64)
        count = 0
        for file in files:
            pixels = self.decode(file)
            if pixels is None:
                continue
            if pixels.shape != shape:
                raise UserError(self.other_size(file, pixels.shape, shape))
            images[count], labels[count] = pixels, file.label
            count += 1
        return Chunk(images[:count], labels[:count], len(files) - count)

    def decode(self, file: ImageFile) -> np.ndarray | None:
        """uint8 (C, H, W), or None for a corrupt file that may be skipped."""
        try:
            data = Path(file.path).read_bytes()
        except OSError as error:
            raise UserError(f"{self.setting}: cannot read {file.path} ({error.strerror or error})") from None
        try:
            return decode_bytes(data, self.channels, self.size)
        except MemoryError:
            raise
        except Exception as error:  # PIL's plugins raise nearly anything on damaged files
            if self.on_corrupt == "skip":
                return None
            hint = ", or set data.on_corrupt=skip" if self.setting.startswith("data.") else ""
            reason = str(error).replace("\n", " ")
            raise UserError(
                f"{self.setting}: cannot decode {file.path} ({reason}); mend or remove the file{hint}"
            ) from None

    def nothing_left(self) -> str:
        """The message for a set of corrupt files only."""
        return f"{self.setting}: none of the {len(self.files)} images of {self.title} can be decoded"

    def other_size(self, file: ImageFile, found: tuple[int, ...], first: tuple[int, ...]) -> str:
        """The message for images of several sizes."""
        return (
            f"data.image_size: expected a size to resize to, since images differ: {file.path} is "
            f"{found[2]}x{found[1]}, the first is {first[2]}x{first[1]}; set for instance data.image_size=32"
        )


def open_image(source: BinaryIO) -> Image.Image:
    """An image of one of `FORMATS`, whatever its file is called.

    Pillow knows forty formats more and tells them by the first bytes; of some it hands a stranger's file to another
    program (EPS to Ghostscript).

    Raises:
        ValueError: it is none of them; and what Pillow raises for a damaged one.
    """
    try:
        return Image.open(source, formats=sorted(set(FORMATS.values())))
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(sorted(set(FORMATS.values())))}, or damaged") from None


def decode_bytes(data: bytes, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """One encoded image -> uint8 (C, H, W)."""
    with open_image(io.BytesIO(data)) as opened:
        if opened.mode[0] in "IF":
            raise ValueError(f"expected 8 bits a channel, got mode {opened.mode}, which PIL would clip")
        image = opened.convert(MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def thread_count() -> int:
    """Cores that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)
