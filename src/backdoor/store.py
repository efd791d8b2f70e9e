"""Artifacts addressed by content: nothing is made twice, nothing half-made counts, killed work goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from backdoor.errors import UserError
from backdoor.locks import locked
from backdoor.ranks import rank, share, wait_for_all

FORMAT = 1  # part of every key: raise it when what a stage computes changes
WAIT_NOTICE_S = 2.0
META = "artifact.json"

T = TypeVar("T")


def fingerprint(value: Any) -> str:
    """Hex digest (20 digits) of a JSON-able value; the order of keys does not matter."""
    text = json.dumps([FORMAT, value], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows it, so that weights are not stored twice."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # renaming one link of a file to another does nothing


def store_root(chosen: str | None) -> Path:
    """The store's folder: `store.dir`, or the user's cache folder."""
    return Path(chosen or platformdirs.user_cache_dir("backdoor")).expanduser()


class Store:
    """A folder of finished artifacts, `<root>/<kind>/<key>/`.

    What is being made lies in `<key>.part/`, which survives a kill, so that its maker can go on from what it finds
    there; a rename makes it count. A file lock lets one process make it while others wait and then reuse; the
    operating system frees the lock of a process that dies.

    Args:
        root: a folder, created if missing; may be shared by many processes.
        say: called with one line when this process has to wait.
    """

    def __init__(self, root: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.root, self.say = root, say
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"store.dir={root}: expected a writable folder ({error.strerror})") from None

    def folder(self, kind: str, key: str) -> Path:
        """Where the finished artifact lies or will lie."""
        return self.root / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Whether it is finished."""
        return (self.folder(kind, key) / META).exists()

    def fetch(
        self,
        kind: str,
        key: str,
        *,
        make: Callable[[Path], None],
        load: Callable[[Path], T],
        describe: Any = None,
    ) -> tuple[T, bool]:
        """The loaded artifact, and True if it was there already.

        The processes of one job call this together: rank 0 alone takes the lock and says whether it is there, all of
        them make it, and each loads what rank 0 has written.

        Args:
            make: fills the folder that it is given, on rank 0; what an earlier, killed call left is still in it.
            load: reads the finished folder. Files that it cannot read (ValueError, OSError, KeyError, UserError)
                are thrown away and made again.
            describe: JSON-able, kept beside the artifact for whoever looks.
        """
        final = self.folder(kind, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        part, leads = final.with_name(key + ".part"), rank() == 0
        with self.lock(final) if leads else nullcontext():
            found = self.read(kind, key, load) if leads else []
            if leads and not found:
                part.mkdir(exist_ok=True)
            hit = share(bool(found))
            if not hit:
                make(part)
                wait_for_all()
                if leads:
                    write_json(part / META, {"kind": kind, "key": key, "format": FORMAT, "of": describe})
                    shutil.rmtree(final, ignore_errors=True)
                    os.replace(part, final)
                wait_for_all()
            return (found or [load(final)])[0], hit

    def read(self, kind: str, key: str, load: Callable[[Path], T]) -> list[T]:
        """The loaded artifact, or nothing; one that cannot be read is thrown away."""
        final = self.folder(kind, key)
        if not self.has(kind, key):
            return []
        try:
            return [load(final)]
        except (ValueError, OSError, KeyError, UserError) as error:
            self.say(f"stored {kind} {key} cannot be read ({error}); it is made again")
            shutil.rmtree(final)
            return []

    @contextmanager
    def lock(self, final: Path) -> Iterator[None]:
        """Hold the artifact's lock; says so if another process has it.

        Raises:
            UserError: a file system without locks, or something else where the lock file should be.
        """
        path, what = final.with_name(final.name + ".lock"), f"{final.parent.name} {final.name}"

        def waiting() -> None:
            self.say(f"another process is making {what}: waiting to reuse it")

        with locked(path, self.root, waiting, notice_s=WAIT_NOTICE_S):
            yield
