"""Which images lie where: class folders, and seeded choices of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from backdoor.data.decode import ImageFile, stamp_of
from backdoor.data.reserve import Limit
from backdoor.errors import UserError, suggest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


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


def images_below(folder: Path, label: int) -> list[ImageFile]:
    """All image files of a class folder and of the folders in it, in torchvision's order."""
    found, inner = [], []
    with os.scandir(os.path.realpath(folder)) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                found.append(ImageFile(entry.path, label, stamp_of(entry.stat())))
            elif entry.is_dir():
                inner.append(Path(entry.path))
    found.sort()
    for path in sorted(inner):
        found += images_below(path, label)
    return found


def scan_classes(
    folder: Path, labels: dict[str, int] | None, setting: str, layout: str
) -> tuple[list[ImageFile], tuple[str, ...]]:
    """Files of a tree with a folder a class, and the names of its folders.

    Args:
        labels: folder name -> label; None numbers the sorted folder names; each must then hold an image.

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
    for name, path in folders.items():
        try:
            inside = images_below(path, numbers[name])
        except OSError as error:
            raise UserError(f"{setting}={path}: cannot be read ({error})") from None
        if not inside and labels is None:
            raise UserError(f"{setting}={path}: this class folder holds no image ({' '.join(EXTENSIONS)})")
        files += inside
    if not files:
        raise UserError(f"{setting}={folder}: its folders hold no image; expected {layout}")
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
