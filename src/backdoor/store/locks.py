"""File locks that the operating system frees when their owner dies, or a clear refusal."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from backdoor.errors import UserError

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


@contextmanager
def locked(path: Path, root: Path, waiting: Callable[[], object], *, notice_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, whose folder exists.

    Args:
        root: the folder that a message calls `store.dir`.
        waiting: called once if another process has the lock for `notice_s` seconds.

    Raises:
        UserError: a file system without locks, or a path that cannot be a lock file.
    """
    check_locks(path, root)
    guard = FileLock(path)
    try:
        guard.acquire(timeout=notice_s)
    except Timeout:
        waiting()
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


def check_locks(path: Path, root: Path) -> None:
    """Try the lock before filelock does, whose releases each do something else where `flock` is missing.

    3.13 waits for ever (ENOLCK); later ones make a marker file (ENOSYS), which a killed owner leaves behind; from 4 on
    the lock object does not tell.

    Raises:
        UserError: as `locked`.
    """
    if sys.platform == "win32":  # where every folder has locks
        return
    try:
        descriptor = open_lock_file(path)
    except OSError as error:
        raise UserError(
            f"store.dir={root}: expected a lock file at {path}, or a folder that one can be made in "
            f"({error.strerror}); move away what is there, or set store.dir to another folder"
        ) from None
    try:
        lock_once(descriptor)
    except (ImportError, AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"store.dir={root}: this folder's file system has no file locks, so processes could train the same "
            "thing at once; set store.dir to one that has them (NFSv4, Lustre with flock, a local disk)"
        ) from None
    finally:
        os.close(descriptor)  # which frees the lock as well


def open_lock_file(path: Path) -> int:
    """Its descriptor; a new file is made only if there is none, as in a sticky folder another user's may not be."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # as filelock opens it
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o666)


def lock_once(descriptor: int) -> None:
    """Take the lock if it is free.

    Raises:
        OSError: there are no locks here.
        ImportError, AttributeError: this Python has none.
    """
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # another process has it
        return
