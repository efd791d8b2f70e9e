"""What the tests share: a cache of decoded digits, the real command line, and the place of real images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# One thread a worker, before torch is imported: workers that each want every core hinder one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from backdoor.cli.main import run_command
from helpers.cli import CONF
from helpers.command import Completed, RunCli, environment

# Files of a minute or so begin first, or one worker would end with them while the other has nothing left to do.
LONG = ("run", "ddp", "launchers", "sweep", "run_again", "attack_inputaware_runs", "sweep_progress", "ddp_fit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the others as they come."""
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests that do not ask for a fresh one."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run_cli(tmp_path: Path, cache_dir: Path) -> RunCli:
    """`run_cli("attack=badnets", env={...}, timeout=60)`: a real process in a working directory of its own."""

    def call(
        *words: str, env: dict[str, str] | None = None, timeout: float = 240, cwd: Path | None = None
    ) -> Completed:
        return subprocess.run(
            [sys.executable, "-m", "backdoor", *words],
            capture_output=True,
            text=True,
            env=environment(cache_dir, **(env or {})),
            cwd=cwd or tmp_path,
            timeout=timeout,
        )

    return call


@pytest.fixture
def command(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`command("attack=sig")` -> (exit status, stdout, stderr): the same command line, without a process of its own."""

    def call(
        *words: str, cache: Path | None = None, program: tuple[str, str] = ("backdoor.experiment.run", "config")
    ) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("BACKDOOR_CACHE", str(cache or cache_dir))
        monkeypatch.setenv("CI", "true")
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", ["backdoor", *words])
        capsys.readouterr()
        GlobalHydra.instance().clear()
        try:
            status = run_command(*program)
        finally:
            GlobalHydra.instance().clear()
            os.environ.pop("HYDRA_FULL_ERROR", None)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A small conf/ of the test's own, some of it broken."""
    for name, text in CONF.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "conf"


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A 12x8 PNG with soft alpha."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (8, 12, 4), generator=generator, dtype=torch.uint8)
    path = tmp_path_factory.mktemp("picture") / "trigger.png"
    Image.fromarray(pixels.numpy()).save(path)
    return str(path)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real images that BACKDOOR_TEST_DATA names: cifar10-jpeg/, gtsrb/, tiny-imagenet-200/."""
    value = os.environ.get("BACKDOOR_TEST_DATA")
    if not value:
        pytest.skip("BACKDOOR_TEST_DATA names no folder with cifar10-jpeg/, gtsrb/ and tiny-imagenet-200/")
    return Path(value)
