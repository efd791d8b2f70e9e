"""Which images lie where: class folders, and seeded choices of files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from backdoor.data.decode import FORMATS, ImageFile, stamp_of
from backdoor.data.reserve import Limit
from backdoor.errors import UserError, suggest

log = logging.getLogger(__name__)

EXTENSIONS = tuple(FORMATS)
FILE_MANAGERS = ("thumbs.db", "desktop.ini")  # what Windows leaves in a folder that was looked at


def subfolders(folder: Path, setting: str, layout: str) -> dict[str, Path]:
    """Name -> path of the folders in `folder`, sorted by name; hidden ones are left out.

    Raises:
        UserError: `folder` is missing or holds no folder; the message ends with the expected `layout`.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise UserError(f"{setting}={folder}: cannot be read ({error.strerror}); expected {layout}") from None
    if not names:
        raise UserError(f"{setting}={folder}: holds no folder; expected {layout}")
    return {name: folder / name for name in names}


def images_below(folder: Path, label: int, others: Counter[str]) -> list[ImageFile]:
    """All image files of a class folder and of the folders in it, in torchvision's order.

    Args:
        others: extension -> files of other kinds; those found here are added.
    """
    found, inner = [], []
    with os.scandir(os.path.realpath(folder)) as entries:
        for entry in entries:
            name = entry.name.lower()
            if name[0] == "." or name in FILE_MANAGERS:
                continue
            if entry.is_dir():
                inner.append(Path(entry.path))
            elif name.endswith(EXTENSIONS) and entry.is_file():
                found.append(ImageFile(entry.path, label, stamp_of(entry.stat())))
            else:
                others[os.path.splitext(name)[1] or "no extension"] += 1
    found.sort()
    for path in sorted(inner):
        found += images_below(path, label, others)
    return found


def left_out(others: Counter[str]) -> str:
    """``12 files of other kinds are left out (.heic 10, .txt 2)``, the most frequent first; "" for none."""
    if not others:
        return ""
    count, ranked = others.total(), sorted(others.items(), key=lambda kind: (-kind[1], kind[0]))
    named = ", ".join(f"{kind} {number}" for kind, number in ranked[:8])
    more = f" and {len(ranked) - 8} kinds more" if len(ranked) > 8 else ""
    files = "files of other kinds are" if count > 1 else "file of another kind is"
    return f"{count:,} {files} left out ({named}{more}); images are {' '.join(EXTENSIONS)}"


def scan_classes(
    folder: Path, labels: dict[str, int] | None, setting: str, layout: str, *, beside: Sequence[str] = ()
) -> tuple[list[ImageFile], tuple[str, ...]]:
    """Files of a tree with a folder a class, and the names of its folders; files of other kinds are told in a line.

    Args:
        labels: folder name -> label; None numbers the sorted folder names; each must then hold an image.
        beside: extensions of other files that belong to the layout.

    Raises:
        UserError: missing or empty folder, or one that `labels` lacks.
    """
    folders = subfolders(folder, setting, layout)
    if labels is not None:
        unknown = sorted(set(folders) - set(labels))
        if unknown:
            raise UserError(
                f"{setting}={folder}: folder {unknown[0]!r} ({len(unknown)} such) is no class of the train "
                f"data; {suggest(unknown[0], list(labels)[:20])}"
            )
    numbers = labels or {name: number for number, name in enumerate(folders)}
    files: list[ImageFile] = []
    others: Counter[str] = Counter()
    for name, path in folders.items():
        here: Counter[str] = Counter()
        try:
            inside = images_below(path, numbers[name], here)
        except OSError as error:
            raise UserError(f"{setting}={path}: cannot be read ({error})") from None
        if not inside and labels is None:
            told = left_out(here) or f"images are {' '.join(EXTENSIONS)}"
            raise UserError(f"{setting}={path}: this class folder holds no image; {told}")
        files += inside
        others += here
    if not files:
        told = f"; {left_out(others)}" if others else ""
        raise UserError(f"{setting}={folder}: its folders hold no image; expected {layout}{told}")
    for kind in beside:
        del others[kind]
    if others:
        log.warning("%s=%s: %s", setting, folder, left_out(others))
    files.sort(key=lambda file: file.label)
    return files, tuple(folders)


def stat_files(paths: Iterable[tuple[str, int]], setting: str) -> list[ImageFile]:
    """(path, label) pairs of a list of images -> files; a missing one is an error of `setting`."""
    files = []
    for path, label in paths:
        try:
            files.append(ImageFile(os.path.abspath(path), label, stamp_of(os.stat(path))))
        except OSError as error:
            raise UserError(f"{setting}: {path} is listed but cannot be read ({error.strerror})") from None
    return files


def limited(files: Sequence[ImageFile], limit: Limit) -> list[ImageFile]:
    """The files that a limit keeps, in order."""
    rows = limit.rows(torch.tensor([file.label for file in files]))
    return [files[row] for row in rows.tolist()]
