"""Worker processes: a device each, and none that dies stops another."""

from __future__ import annotations

import subprocess
import sys

import pytest

from backdoor.errors import UserError
from backdoor.sweep.forecast import workers_of
from backdoor.sweep.workers import check_device, environment_of, run_all, slots_of


def test_each_worker_has_a_device_and_there_are_no_more_than_devices(monkeypatch):
    assert slots_of(None, [0, 2]) == ["0", "2"]
    assert slots_of(1, [0, 2]) == ["0"]
    assert slots_of(None, [0, 0]) == ["0", "0"]
    assert slots_of(3, None) == [None] * 3
    for workers, devices in ((3, [0, 1]), (1, []), (0, None), (None, [])):
        with pytest.raises(UserError, match=r"hydra\.launcher\.workers="):
            slots_of(workers, devices)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment_of("7", 10_000) == {"CUDA_VISIBLE_DEVICES": "7", "OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment_of(None, 2) == {}


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device 5"):
        check_device("5")
    check_device(None)


def test_a_worker_that_dies_fails_its_call_alone():
    def call(what: str) -> str:  # nested, so that the worker needs no module of the tests
        import os
        import signal

        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise KeyError(what)
        return what + os.environ["DEVICE_OF_TEST"] if what == "env" else what

    results = run_all(call, [("a",), ("die",), ("b",), ("raise",), ("c",)], [None, None])
    assert [results[place] for place in (0, 2, 4)] == ["a", "b", "c"]
    assert isinstance(results[1], RuntimeError)
    assert "died" in str(results[1])
    assert isinstance(results[3], KeyError)


IMPORTS = """
import sys, threading
from backdoor.sweep.workers import run_all
assert "joblib" not in sys.modules
start = threading.Thread.start
def checked(thread):
    assert "joblib.externals.loky.process_executor" in sys.modules, thread
    start(thread)
threading.Thread.start = checked
print(run_all(abs, [(-1,), (-2,)], [None, None]))
"""


def test_the_pools_library_is_there_before_threads_that_would_import_it_side_by_side():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1, 2]\n", done.stderr


def test_calls_see_their_workers_device(monkeypatch):
    monkeypatch.setattr("backdoor.sweep.workers.check_device", lambda slot: None)

    def call(pause: float) -> str:
        import os
        import time

        time.sleep(pause)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    # A worker that imports the real check would refuse devices that are not here.
    from backdoor.sweep import workers

    monkeypatch.setattr(workers, "on_device", lambda slot, call, arguments: call(*arguments))
    assert set(run_all(call, [(0.5,)] * 4, ["3", "4"])) == {"3", "4"}


def test_the_plan_knows_how_many_jobs_run_at_once():
    assert workers_of({"workers": None, "devices": [0, 1, 1]}) == 3
    assert workers_of({"timeout_min": 5, "array_parallelism": 32}) == 32
    assert workers_of({}) == 1  # basic; ray, whose cluster alone knows
