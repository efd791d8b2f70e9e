"""Artifacts addressed by content: nothing is made twice, nothing half-made counts, killed work goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from backdoor.errors import UserError
from backdoor.store.intact import Damaged, check_hashes, clear, hashes, reason, set_aside
from backdoor.store.locks import locked
from backdoor.store.ranks import rank, share, wait_for_all

FORMAT = 2  # part of every key: raise it when what lies in an artifact changes its form
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


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a finished folder is `about` and the sha256 of each of its files."""
    write_json(folder / META, {**about, "format": FORMAT, "files": hashes(folder, META)})


def sealed(folder: Path) -> dict[str, Any]:
    """What was written by `seal`.

    Raises:
        Damaged: it is not there or no longer true. What a hostile file can raise besides: OSError, ValueError,
            RecursionError.
    """
    if not (folder / META).is_file():
        raise Damaged(f"it has no {META}")
    about = json.loads((folder / META).read_text())
    if not isinstance(about, dict):
        raise Damaged(f"{META} is damaged")
    check_hashes(folder, about.get("files"))
    return about


def is_memory(error: Exception) -> bool:
    """Whether memory ran out, of the machine or of a GPU (torch is not imported here)."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class Store:
    """A folder of finished artifacts, `<root>/<kind>/<key>/`.

    What is being made lies in `<key>.part/`, which survives a kill, so that its maker can go on from what it finds
    there; a rename makes it count. The sha256 of each file lies beside it and is checked before it is loaded: what was
    edited, exchanged or damaged since is said, set aside as `<key>.bad` and made again.

    A file lock lets one process make it while others wait and then reuse; the operating system frees the lock of a
    process that dies.

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
        """Whether it is finished; whether it is whole is known when it is fetched."""
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
            load: reads the finished folder. Whatever it raises, the folder is set aside and made again, but for want
                of memory.
            describe: JSON-able, kept beside the artifact for whoever looks.
        """
        final = self.folder(kind, key)
        self.make_room(kind)
        part, leads = final.with_name(key + ".part"), rank() == 0
        with self.lock(final) if leads else nullcontext():
            found = self.read(kind, key, load) if leads else []
            if leads and not found:
                if not part.is_dir():
                    clear(part)
                part.mkdir(exist_ok=True)
            hit = share(bool(found))
            if not hit:
                make(part)
                wait_for_all()
                if leads:
                    seal(part, {"kind": kind, "key": key, "of": describe})
                    os.replace(part, final)
                wait_for_all()
            return (found or [load(final)])[0], hit

    def read(self, kind: str, key: str, load: Callable[[Path], T]) -> list[T]:
        """The loaded artifact, or nothing; one that is not what was written, or cannot be read, is set aside."""
        final = self.folder(kind, key)
        if not os.path.lexists(final):
            return []
        try:
            sealed(final)
            return [load(final)]
        except Exception as error:  # damaged files end their readers in any way
            if is_memory(error):
                raise
            self.say(f"stored {kind} {key} cannot be used ({reason(error)}): set aside as {key}.bad, and made again")
            set_aside(final)
            return []

    def about(self, kind: str, key: str) -> Any:
        """What was given to `fetch` as `describe` when a finished artifact was made."""
        return json.loads((self.folder(kind, key) / META).read_text())["of"]

    def make_room(self, kind: str) -> None:
        """Make the folder of a kind.

        Raises:
            UserError: a file is in its place.
        """
        try:
            (self.root / kind).mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(
                f"store.dir={self.root}: expected {kind} in it to be a folder, found a file; move it away"
            ) from None

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
