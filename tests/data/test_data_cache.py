from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from backdoor.data.cache import cached
from backdoor.data.imageset import ImageSet
from backdoor.data.writer import npy_header
from backdoor.errors import UserError
from helpers.pictures import Counted


def load(pictures: Counted, cache: Path) -> ImageSet:
    return cached(pictures, cache, progress=False)


def test_what_was_decoded_is_reopened_and_decoded_once(tmp_path: Path) -> None:
    pictures = Counted()
    first, again = load(pictures, tmp_path), load(pictures, tmp_path)
    assert pictures.decodes == ["a"]
    assert first.digest == again.digest
    assert (again.count, again.shape, again.skipped) == (10, (3, 2, 2), 2)
    split = again.open()
    assert torch.equal(split.images, torch.arange(120).reshape(10, 3, 2, 2).to(torch.uint8))
    assert torch.equal(split.labels, torch.arange(10))
    assert torch.equal(split.index, torch.arange(10))
    assert not list(tmp_path.rglob("*.tmp"))


def test_equal_content_shares_one_folder_and_other_content_has_another(tmp_path: Path) -> None:
    first, twin = load(Counted("a"), tmp_path), load(Counted("b"), tmp_path)
    other = load(Counted("c", value=1), tmp_path)
    assert first.folder == twin.folder
    assert other.digest != first.digest


def test_writing_to_an_opened_split_reaches_neither_the_file_nor_another_split(tmp_path: Path) -> None:
    images = load(Counted(), tmp_path)
    before = (images.folder / "images.npy").read_bytes()
    split = images.open()
    split.images[3] = 255
    split.labels[3] = 0
    assert int(split.images[3].min()) == 255
    assert int(images.open().images[3].max()) < 255
    assert int(images.open().labels[3]) == 3
    assert (images.folder / "images.npy").read_bytes() == before


@pytest.mark.parametrize(
    "harm", ["truncate", "flip", "labels", "no_meta", "bad_meta", "no_images", "pointer", "pipe", "folder", "meta_pipe"]
)
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, harm: str) -> None:
    pictures = Counted()
    images = load(pictures, tmp_path)
    whole = (images.folder / "images.npy").read_bytes()
    pointer = tmp_path / "data" / "sources" / "a.json"
    if harm == "truncate":
        os.truncate(images.folder / "images.npy", len(whole) - 7)
    elif harm == "flip":
        (images.folder / "images.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif harm == "labels":
        np.save(images.folder / "labels.npy", np.zeros(10, np.int64))
    elif harm == "no_meta":
        (images.folder / "meta.json").unlink()
    elif harm == "bad_meta":
        (images.folder / "meta.json").write_text('{"format": 1')
    elif harm == "no_images":
        (images.folder / "images.npy").unlink()
    elif harm == "meta_pipe":
        (images.folder / "meta.json").unlink()
        os.mkfifo(images.folder / "meta.json")  # nobody writes to it, so reading it would not end
    else:
        pointer.unlink()
        {"pointer": Path.touch, "pipe": os.mkfifo, "folder": Path.mkdir}[harm](pointer)
    again = load(pictures, tmp_path)
    assert pictures.decodes == ["a", "a"]
    assert again.digest == images.digest
    assert (again.folder / "images.npy").read_bytes() == whole


def test_a_copied_cache_is_checked_by_content_and_used(tmp_path: Path) -> None:
    pictures = Counted()
    images = load(pictures, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    os.utime(tmp_path / "two" / "data" / images.digest / "images.npy", (1, 1))
    moved = load(pictures, tmp_path / "two")
    assert pictures.decodes == ["a"]
    stamps = json.loads((moved.folder / "meta.json").read_text())["stamps"]
    assert stamps[0][1] == 1_000_000_000


def test_a_second_user_waits_and_reuses(tmp_path: Path) -> None:
    pictures = Counted()
    (tmp_path / "data" / "locks").mkdir(parents=True)
    guard = FileLock(tmp_path / "data" / "locks" / "a.lock")
    done: list[ImageSet] = []
    with guard:
        thread = threading.Thread(target=lambda: done.append(load(pictures, tmp_path)))
        thread.start()
        time.sleep(0.3)
        assert not done
        assert not pictures.decodes
    thread.join(20)
    assert done[0].count == 10


SLOW = """
import time
from pathlib import Path
from backdoor.data.cache import cached
from helpers.pictures import Counted
class Slow(Counted):
    def chunks(self):
        for chunk in super().chunks():
            yield chunk
            print("wrote", flush=True)
            time.sleep({seconds})
print(cached(Slow(), Path({cache!r}), progress=False).digest, flush=True)
"""


def start(code: str) -> subprocess.Popen[str]:
    """Run Python code in a process of its own, with this one's modules."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_a_killed_decode_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    process = start(SLOW.format(cache=str(tmp_path), seconds=60))
    assert process.stdout is not None
    assert process.stdout.readline() == "wrote\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not list((tmp_path / "data").glob("sources/*.json"))
    images = load(Counted(), tmp_path)
    assert images.count == 10
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_processes_decode_once(tmp_path: Path) -> None:
    code = SLOW.format(cache=str(tmp_path), seconds=0.5)
    outputs = [process.communicate()[0] for process in [start(code), start(code)]]
    assert sum(output.count("wrote") for output in outputs) == 2  # two chunks of one decode
    assert outputs[0].split()[-1] == outputs[1].split()[-1]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from test_data_cache import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"try: load(Counted(), Path({str(tmp_path)!r}))\n"
        "except UserError as error: print(error)\n"
    )
    output = start(code).communicate()[0]
    assert output.startswith(f"store.dir={tmp_path}: cannot write decoded images there (File too large)")
    assert not list((tmp_path / "data").glob("sources/*.json"))


def test_a_cache_path_that_is_a_file_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^store\.dir=.*set store\.dir to another folder"):
        load(Counted(), tmp_path / "file")


def test_header_is_what_numpy_reads(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2)
    (tmp_path / "x.npy").write_bytes(npy_header(pixels.shape) + pixels.tobytes())
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), pixels)
    assert len(npy_header((10**9, 3, 1024, 1024))) == 128
