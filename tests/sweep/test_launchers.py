"""The launchers on a real Ray cluster of two nodes and on a real Slurm: a job that fails or dies stops no other."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from backdoor.errors import UserError
from backdoor.sweep.interrupts import Stopped, stoppable
from backdoor.sweep.launching import enter
from helpers.command import QUICK, RunCli, read_json
from helpers.run import stopping
from hydra_plugins.backdoor_joblib.launcher import JoblibLauncher
from hydra_plugins.backdoor_ray import launcher as ray_launcher
from hydra_plugins.backdoor_ray.launcher import RayLauncher
from hydra_plugins.backdoor_submitit import launcher as slurm_launcher
from hydra_plugins.backdoor_submitit.launcher import SlurmLauncher

NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
JOBS = ("-m", *QUICK, "attack=badnets", "defense=none")


def no_slurm() -> str:
    """Why there is no Slurm to test on; empty if there is."""
    if find_spec("submitit") is None:
        return "submitit is not installed"
    if shutil.which("sinfo") is None:
        return "there is no sinfo here"
    return "" if subprocess.run(["sinfo"], capture_output=True).returncode == 0 else "Slurm does not answer"


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


def on_slurm(test: Callable[..., None]) -> Callable[..., None]:
    why = no_slurm()
    return pytest.mark.slurm(pytest.mark.skipif(bool(why), reason=why)(test))


def outcomes(launcher: Any, folder: Path, shown: str) -> list[Any]:
    """Of four calls, one of which dies and one raises; the others return their word and what `shown` is there."""

    def call(what: str) -> str:  # nested, so that the worker needs no module of the tests
        import os
        import signal

        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise KeyError("first", "second")
        return what + os.environ[shown]

    return launcher.run_all(call, [("a",), ("die",), ("raise",), ("b",)], folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster; NODE_OF_TEST tells its two nodes apart, whose GPU is one that Ray is told of."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={**NODE, "env_vars": {"NODE_OF_TEST": "one"}})
    found.add_node(**NODE, env_vars={"NODE_OF_TEST": "two"})
    yield found.address
    found.shutdown()


@needs_ray
def test_ray_runs_a_sweep_on_both_nodes_and_a_failing_job_stops_no_other(run_cli: RunCli, cluster, tmp_path):
    words = (*JOBS, "hydra/launcher=ray", f"hydra.launcher.address={cluster}", "reserved=0,5000", "seed=1,2")
    where = ("hydra.sweep.dir=sweep", "hydra.sweep.subdir='${hydra.job.num}-${oc.env:NODE_OF_TEST}'")
    done = run_cli(*words, *where, env={"BACKDOOR_CACHE": "cache"})  # a relative folder, in an environment of its own
    assert done.returncode == 2, done.stderr
    assert "4 jobs: 2 done, 2 failed" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: 2 of 4 jobs failed; the first: reserved")
    folders = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert {path.name.partition("-")[2] for path in folders} == {"one", "two"}
    assert [read_json(path, "status.json")["state"] for path in folders] == ["done", "done", "failed", "failed"]
    assert len(list((tmp_path / "cache").glob("result/*/result.json"))) == 2


@needs_ray
def test_half_a_gpu_each_lets_four_jobs_run_at_once_on_two_nodes(cluster, tmp_path):
    def call(number: int) -> tuple[str, str]:
        import os
        import time

        (tmp_path / str(number)).touch()
        until = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(list(tmp_path.iterdir())) == 4  # all have begun and none has ended
        return os.environ["NODE_OF_TEST"], os.environ["CUDA_VISIBLE_DEVICES"]

    halves = RayLauncher(address=cluster, num_cpus=0.5, num_gpus=0.5)
    assert sorted(halves.run_all(call, [(n,) for n in range(4)], tmp_path)) == [("one", "0")] * 2 + [("two", "0")] * 2
    with pytest.raises(UserError, match="num_gpus=2: no node of the Ray cluster"):
        RayLauncher(address=cluster, num_gpus=2).run_all(print, [("a",)], tmp_path)


@needs_ray
def test_a_ray_worker_that_dies_fails_its_job_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKDOOR_CACHE", "/store")
    results = outcomes(RayLauncher(num_cpus=0.5), tmp_path, "BACKDOOR_CACHE")
    assert (results[0], results[3]) == ("a/store", "b/store")
    assert isinstance(results[1], RuntimeError)
    assert str(results[1]).startswith("its process died: ")
    assert isinstance(results[2], KeyError)


def stopped(launcher: Any, folder: Path) -> list[Path]:
    """The processes of two calls without an end, whose sweep was stopped by SIGTERM once one had begun."""

    def call(name: str) -> None:
        import os
        import time

        (folder / name).write_text(str(os.getpid()))
        time.sleep(600)

    names = [folder / "a", folder / "b"]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the test's cluster has put a handler of its own there
    with stopping(signal.SIGTERM, lambda: any(map(written, names))), pytest.raises(Stopped), stoppable():
        launcher.run_all(call, [(name.name,) for name in names], folder)
    return [Path("/proc") / name.read_text() for name in names if name.exists()]


def written(file: Path) -> bool:
    """Whether it is there and holds something."""
    return file.exists() and file.stat().st_size > 0


def soon(true: Callable[[], bool]) -> bool:
    """Whether it becomes true within seconds."""
    until = time.monotonic() + 30
    while not true() and time.monotonic() < until:
        time.sleep(0.1)
    return true()


@needs_ray
def test_ray_tasks_end_with_their_sweep(cluster, tmp_path):
    tasks = stopped(RayLauncher(address=cluster, num_cpus=0.5), tmp_path)
    assert soon(lambda: not any(task.exists() for task in tasks))


@on_slurm
def test_slurm_jobs_end_with_their_sweep(tmp_path):
    jobs = stopped(SlurmLauncher(timeout_min=5, cpus_per_task=1), tmp_path)
    assert soon(lambda: not any(job.exists() for job in jobs))
    assert soon(lambda: slurm_launcher.queue() == set())


@needs_ray
def test_what_ray_cannot_run_is_refused(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "here"):
        with pytest.raises(UserError, match=rf"^hydra\.launcher\.address={address}: no Ray cluster answers"):
            RayLauncher(address=address).run_all(print, [], tmp_path)
    for settings in ({"num_gpus": -1}, {"num_gpus": 1.5}, {"num_cpus": "many"}):
        with pytest.raises(UserError, match=rf"^hydra\.launcher\.{next(iter(settings))}="):
            RayLauncher(**settings)
    nodes = [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]
    RayLauncher(num_cpus=2, num_gpus=0.5).check_room(nodes)
    with pytest.raises(UserError, match=r"num_gpus=1: no node .* \(8 CPUs, 0 GPUs; 2 CPUs, 1 GPUs\)"):
        RayLauncher(num_cpus=4, num_gpus=1).check_room(nodes)


@on_slurm
def test_slurm_runs_a_sweep_and_a_failing_job_stops_no_other(run_cli: RunCli, tmp_path):
    asked = ("hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1")
    words = (*JOBS, "hydra/launcher=submitit_slurm", *asked, "reserved=0,5000", "hydra.sweep.dir=sweep")
    done = run_cli(*words, env={"BACKDOOR_CACHE": "cache"})
    assert done.returncode == 2, done.stderr
    assert "2 jobs: 1 done, 1 failed" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 2 jobs failed; the first: reserved")
    states = [read_json(tmp_path / "sweep" / f"{job}-badnets-none", "status.json")["state"] for job in (0, 1)]
    assert states == ["done", "failed"]
    assert len(list((tmp_path / "cache").glob("result/*/result.json"))) == 1


@on_slurm
def test_a_slurm_job_that_dies_fails_alone(tmp_path):
    launcher = SlurmLauncher(timeout_min=5, cpus_per_task=1, setup=["export SET_UP=1"])
    results = outcomes(launcher, tmp_path, "SET_UP")
    assert (results[0], results[3]) == ("a1", "b1")
    assert str(results[1]).startswith("its process died: ")
    assert "Killed" in str(results[1])
    assert "KeyError" in str(results[2])


@on_slurm
def test_what_slurm_refuses_is_told(tmp_path):
    with pytest.raises(UserError, match=r"sbatch refuses the jobs .*Invalid partition"):
        SlurmLauncher(timeout_min=5, partition="nowhere").run_all(print, [("a",)], tmp_path)


def test_without_slurm_nothing_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("backdoor.sweep.launching.find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        SlurmLauncher(timeout_min=5)
    for name in slurm_launcher.COMMANDS:
        (tmp_path / name).write_text("#!/bin/sh\necho 'slurm_load_partitions: no controller' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(UserError, match=r"Slurm does not answer \(slurm_load_partitions: no controller\)"):
        SlurmLauncher(timeout_min=5)
    with pytest.raises(UserError, match=r"^hydra\.launcher\.timeout_min=0: "):
        SlurmLauncher(timeout_min=0)


@pytest.mark.parametrize(
    ("make", "name"), [(JoblibLauncher, "joblib"), (RayLauncher, "ray"), (SlurmLauncher, "submitit")]
)
def test_without_its_package_the_extra_is_named(make, name, monkeypatch):
    monkeypatch.setattr("backdoor.sweep.launching.find_spec", lambda name: None)
    settings = {"timeout_min": 5} if make is SlurmLauncher else {}
    with pytest.raises(UserError, match=rf"^hydra/launcher={name}.*: {name} is not installed.*backdoor\[launchers\]"):
        make(**settings)


def test_a_machine_without_the_folder_says_so(tmp_path):
    with pytest.raises(UserError, match=r"gone: No such file or directory on .* that all of them share"):
        enter(str(tmp_path / "gone"))


def test_workers_find_the_code_of_a_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/other")
    source = Path(ray_launcher.backdoor.__file__).parents[1]
    assert ray_launcher.python_path() == f"{source}:/other"
