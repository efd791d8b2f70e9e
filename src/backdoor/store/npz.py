"""npz files: written without pickle, and a stranger's read within a size, with one clear line whatever is wrong."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from backdoor.errors import UserError

PLAN_BYTES = 64 << 20  # rows or labels: a plan of eight million rows
DEFLATES = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; LZMA's header may ask for gigabytes
SAVED = "write it with numpy.savez"


class Npz:
    """The arrays of an open file, each read when it is asked for.

    Attributes:
        files: their names.
    """

    def __init__(self, archive: zipfile.ZipFile, where: str, limit: int, hint: str) -> None:
        self.archive, self.where, self.limit, self.hint = archive, where, limit, hint
        self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        self.files = list(self.members)

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises UserError for an array that is missing or cannot be read."""
        with refusing(self.where, self.hint):
            if name not in self.members:
                raise ValueError(f"it lacks the array {name}; it has: {', '.join(self.files) or 'nothing'}")
            member = self.members[name]
            check_member(member, self.limit)
            with self.archive.open(member) as file:
                check_header(file, member.file_size, name)
            with self.archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):  # up to the end, where the checksum is compared
                    raise ValueError(f"{name} has more bytes than its header says")
            return array


@contextmanager
def open_npz(path: Path, setting: str, *, limit: int | None = None, hint: str = SAVED) -> Iterator[Npz]:
    """An npz without pickled objects, for as long as the `with` lasts.

    Args:
        limit: bytes of an array; the file's own headers declare them, and nothing reads past those. None = as this
            machine's memory has.
        hint: what to do about a file that cannot be read.

    Raises:
        UserError: anything else than a regular file of that kind and size, also while it is read.
    """
    where = f"{setting}={path}"
    with refusing(where, hint):
        if not path.is_file():  # opening a FIFO would wait for its writer
            raise FileNotFoundError("no such file" if not path.exists() else "no regular file")
        archive = zipfile.ZipFile(path)
    with archive:
        yield Npz(archive, where, memory() if limit is None else limit, hint)


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def refusing(where: str, hint: str) -> Iterator[None]:
    """Turn whatever reading raises (zlib, zipfile, NumPy and the system have errors of their own) into one line."""
    try:
        yield
    except Exception as error:
        said = "".join(letter if letter.isprintable() else " " for letter in str(error))  # names may hold anything
        reason = " ".join(said.split())[:200] or type(error).__name__
        raise UserError(
            f"{where}: expected an npz of plain arrays, without pickled objects ({reason}); {hint}"
        ) from None


def check_member(member: zipfile.ZipInfo, limit: int) -> None:
    """Raises ValueError for what NumPy does not write, and for an array of more than `limit` bytes."""
    if member.flag_bits & 1:
        raise ValueError(f"{member.filename} is encrypted")
    if member.compress_type not in DEFLATES:
        raise ValueError(f"{member.filename} is compressed in another way than NumPy does")
    if member.file_size > limit:
        raise ValueError(f"{member.filename} has {member.file_size:,} bytes; at most {limit:,} are read")


def check_header(file: IO[bytes], size: int, name: str) -> None:
    """Raises ValueError for an array that claims more elements than its `size` bytes can hold.

    NumPy allocates what the header claims before it reads; elements without bytes could be countless.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if math.prod(shape) * max(1, dtype.itemsize) > size and not dtype.hasobject:  # which NumPy itself refuses
        raise ValueError(f"{name}: its header claims {shape} of {dtype}, more than the file holds")


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed npz atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
