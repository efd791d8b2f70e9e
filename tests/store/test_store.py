"""The artifact store: once, atomically, across processes and kills."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from backdoor.data.cache import lock
from backdoor.errors import UserError
from backdoor.store.store import Store, fingerprint


def write(text: str):
    return lambda folder: (folder / "value").write_text(text) and None


def read(folder: Path) -> str:
    return (folder / "value").read_text()


def test_made_once(tmp_path):
    store = Store(tmp_path)
    assert store.fetch("kind", "key", make=write("one"), load=read) == ("one", False)
    assert store.fetch("kind", "key", make=write("two"), load=read) == ("one", True)
    assert store.fetch("kind", "other", make=write("two"), load=read) == ("two", False)


def test_fingerprint_depends_on_content_not_on_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_a_failed_make_does_not_count_and_can_go_on(tmp_path):
    store = Store(tmp_path)

    def half(folder: Path) -> None:
        (folder / "resume").write_text("so far")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.fetch("kind", "key", make=half, load=read)
    assert not store.has("kind", "key")

    def rest(folder: Path) -> None:
        (folder / "value").write_text((folder / "resume").read_text())

    assert store.fetch("kind", "key", make=rest, load=read) == ("so far", False)


def test_an_unreadable_artifact_is_made_again(tmp_path):
    said: list[str] = []
    store = Store(tmp_path, said.append)
    store.fetch("kind", "key", make=write("one"), load=read)
    (tmp_path / "kind" / "key" / "value").unlink()
    assert store.fetch("kind", "key", make=write("two"), load=read) == ("two", False)
    assert "made again" in said[0]


def slow_fetch(root: str, seconds: float, results, start=None) -> None:
    def make(folder: Path) -> None:
        time.sleep(seconds)
        (folder / "value").write_text(str(os.getpid()))

    said: list[str] = []
    if start is not None:
        start.wait(timeout=60)  # imports take seconds, and not the same ones
    value = Store(Path(root), said.append).fetch("kind", "key", make=make, load=read)
    results.put((value, said))


def test_a_second_process_waits_and_reuses(tmp_path):
    context = multiprocessing.get_context("spawn")
    results, start = context.Queue(), context.Barrier(2)
    workers = [context.Process(target=slow_fetch, args=(str(tmp_path), 4.0, results, start)) for _ in range(2)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len({value for (value, _), _ in outcomes}) == 1  # one process made it
    assert sorted(hit for (_, hit), _ in outcomes) == [False, True]
    assert any("waiting to reuse" in line for _, said in outcomes for line in said)


def test_a_killed_owner_blocks_nobody(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()  # kept: the child cannot open a queue that is collected here
    owner = context.Process(target=slow_fetch, args=(str(tmp_path), 600.0, results))
    owner.start()
    while not (tmp_path / "kind" / "key.part").exists():
        assert owner.is_alive()
        time.sleep(0.05)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert Store(tmp_path).fetch("kind", "key", make=write("after"), load=read) == ("after", False)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"store\.dir=.*writable"):
        Store(tmp_path / "file" / "store")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_folder_without_locks_is_refused(tmp_path, monkeypatch, code):
    def refuse(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"store\.dir=.*no file locks"):
        Store(tmp_path).fetch("kind", "key", make=write("one"), load=read)
    assert not list(tmp_path.glob("kind/key.part"))
    with pytest.raises(UserError, match=r"store\.dir=.*no file locks"), lock(tmp_path / "data", "name", "pictures"):
        pass


@pytest.mark.parametrize("thing", [Path.mkdir, lambda path: path.symlink_to(path.name)], ids=["folder", "link"])
def test_what_is_no_lock_file_is_named(tmp_path, thing):
    (tmp_path / "kind").mkdir()
    thing(tmp_path / "kind" / "key.lock")
    with pytest.raises(UserError, match=r"expected a lock file at .*/kind/key\.lock.* move away") as caught:
        Store(tmp_path).fetch("kind", "key", make=write("one"), load=read)
    assert "\n" not in str(caught.value)
    (tmp_path / "kind" / "key.lock").rename(tmp_path / "away")
    assert Store(tmp_path).fetch("kind", "key", make=write("one"), load=read) == ("one", False)
