"""Decode once: pixels lie under the hash of their content; a pointer leads from their source to them.

    <cache_dir>/data/sources/<signature>.json     {"digest", "skipped"}
    <cache_dir>/data/<digest>/                    images.npy, labels.npy, meta.json

Whatever is read again is checked first: a folder that is not complete or was written to is made anew.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from backdoor.data.imageset import ImageSet, Pictures
from backdoor.data.writer import FORMAT, Writer, close_digest, stamps_of, write_json
from backdoor.errors import UserError
from backdoor.store.intact import clear
from backdoor.store.locks import locked
from backdoor.store.untrusted import read_json

log = logging.getLogger(__name__)


def cached(pictures: Pictures, cache_dir: Path, *, progress: bool = True) -> ImageSet:
    """The decoded images from the cache; decoded into it if they are not there.

    Two processes that need the same images decode them once: the second waits, then reuses.

    Args:
        cache_dir: the images go to `<cache_dir>/data`.
        progress: show a bar while decoding (never if the environment has CI=true, or without a terminal).

    Raises:
        UserError: files that cannot be used, or a cache folder that cannot be written.
    """
    root, key = Path(cache_dir).expanduser() / "data", pictures.signature()
    found = reopen(root, key)
    if found is not None:
        return found
    with writing(cache_dir), lock(root, key, pictures.title):
        found = reopen(root, key)
        if found is None:
            store(pictures, root, key, progress)
            found = reopen(root, key)
    if found is None:
        raise UserError(f"store.dir={cache_dir}: what was just written there reads back damaged; check the disk")
    return found


def reopen(root: Path, key: str) -> ImageSet | None:
    """The cached images of a signature, or None if they are not there, not whole or not what was written."""
    with suppress(Exception):
        pointer = read_json(root / "sources" / f"{key}.json")
        folder = root / pointer["digest"]
        shape = verified_shape(folder, pointer["digest"])
        if shape is not None:
            labels = torch.from_numpy(np.load(folder / "labels.npy", allow_pickle=False))
            count, channels, height, width = shape
            return ImageSet(
                pointer["digest"], count, (channels, height, width), labels, folder, int(pointer["skipped"])
            )
    return None


def verified_shape(folder: Path, digest: str) -> list[int] | None:
    """(N, C, H, W) of a content folder, if its files are those that were written.

    Size and time of change tell without reading the pixels; hashing them in each run would cost as much as reading
    them (3 s for Tiny ImageNet's 1.3 GB), so a disk that changes bits by itself goes unseen. Where only the times
    differ (a copied cache), the hash decides, once.
    """
    meta = read_json(folder / "meta.json")
    if meta["format"] != FORMAT or meta["digest"] != digest:
        return None
    stamps = stamps_of(folder)
    if stamps == meta["stamps"]:
        return meta["shape"]
    if [stamp[0] for stamp in stamps] != [stamp[0] for stamp in meta["stamps"]]:
        return None
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    content = hashlib.sha256(images.data)
    if list(images.shape) != meta["shape"] or close_digest(content, labels, images.shape) != digest:
        return None
    with suppress(OSError):  # a read-only cache is checked each time
        write_json(folder / "meta.json", {**meta, "stamps": stamps})
    return meta["shape"]


def store(pictures: Pictures, root: Path, key: str, progress: bool) -> None:
    """Decode into a folder of our own and move it into place when it is whole; the caller holds the lock."""
    temporary = root / f"decoding-{key}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    temporary.mkdir(parents=True)
    try:
        with bar(pictures.title, pictures.total, progress) as advance, Writer(temporary) as writer:
            for chunk in pictures.chunks():
                if not writer.labels and pictures.total is not None:
                    check_space(root, pictures, chunk.images)
                writer.append(chunk)
                advance(len(chunk.images) + chunk.skipped)
        digest = writer.digest
        with lock(root, "publish", pictures.title):
            publish(temporary, root / digest, digest)
        pointer = root / "sources" / f"{key}.json"
        pointer.parent.mkdir(exist_ok=True)
        if pointer.is_dir():
            clear(pointer)  # nothing of ours
        write_json(pointer, {"digest": digest, "skipped": writer.skipped})
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_space(root: Path, pictures: Pictures, first: np.ndarray) -> None:
    """Raises UserError if all images, as large as the first (n, C, H, W), would not fit on the disk."""
    needed, free = (pictures.total or 0) * math.prod(first.shape[1:]), shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"store.dir: the decoded images of {pictures.title} take {needed / 2**30:,.1f} GiB and {free / 2**30:,.1f} "
            "GiB are free there; use smaller or fewer images (data.image_size, data.limit), or another disk"
        )


def publish(temporary: Path, folder: Path, digest: str) -> None:
    """Move a whole folder into place, unless the same content lies there already, undamaged."""
    with suppress(Exception):
        if verified_shape(folder, digest) is not None:
            return
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


@contextmanager
def lock(root: Path, name: str, title: str) -> Iterator[None]:
    """Hold the file lock of `name`; says so once if another process has it."""
    (root / "locks").mkdir(parents=True, exist_ok=True)
    path = root / "locks" / f"{name}.lock"
    with locked(path, root.parent, lambda: log.info("data: waiting for another process that prepares %s", title)):
        yield


@contextmanager
def writing(cache_dir: Path) -> Iterator[None]:
    """Turn a full disk or a folder that may not be written into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"store.dir={cache_dir}: cannot write decoded images there ({error.strerror or error}); "
            "free some space or set store.dir to another folder"
        ) from error


@contextmanager
def bar(title: str, total: int | None, progress: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; yields `advance(n)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    quiet = not progress or os.environ.get("CI", "").lower() in ("1", "true") or not console.is_terminal
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet) as shown:
        task = shown.add_task(f"decoding {title}", total=total)
        yield lambda count: shown.advance(task, count)
