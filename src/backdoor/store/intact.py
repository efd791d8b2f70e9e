"""Files as they were written: each one's sha256 lies beside them and is checked before they are read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Damaged(ValueError):
    """What lies there is not what was written; the message says in a few words how it differs."""


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path, without: str) -> dict[str, str]:
    """Path in the folder -> sha256 of every file but the one named `without`, which will hold them."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in found]
    return {name: sha256(path) for name, path in zip(names, found, strict=True) if name != without}


def check_hashes(folder: Path, written: Any) -> None:
    """Compare a folder with `hashes`, as read from JSON; files that came later do not matter.

    Raises:
        Damaged: which file is missing or is not the one that was written.
    """
    if not isinstance(written, Mapping) or not all(isinstance(value, str) for value in written.values()):
        raise Damaged("nothing says what its files were")
    for name, value in written.items():
        path = folder / name
        if not path.is_file():  # a FIFO would be waited for
            raise Damaged(f"{name} is missing")
        if sha256(path) != value:
            raise Damaged(f"{name} is not the file that was written: its sha256 differs")


def set_aside(path: Path) -> None:
    """Rename whatever lies there to `<name>.bad`, in the place of what was set aside before."""
    aside = path.with_name(path.name + ".bad")
    clear(aside)
    os.replace(path, aside)


def clear(path: Path) -> None:
    """Remove a folder, a file, a link, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """The first 160 characters of what an error says, on one line; its type, if it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__
