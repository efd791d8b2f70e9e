"""What the project needs: up to which releases, which of them the tests passed with, and how `make` installs them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PIN = r"(?!nvidia-|cuda-|triton|backdoor)[A-Za-z0-9._-]+==[0-9][0-9a-z.]*"
NEEDED = [
    Requirement(text)
    for texts in (
        PROJECT["build-system"]["requires"],
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
    )
    for text in texts
    if not text.startswith("backdoor[")
]


def pins() -> dict[str, Version]:
    pairs = (line.split("==") for line in LINES if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_every_range_ends_at_the_next_major_release_or_before() -> None:
    for need in NEEDED:
        tops = [Version(part.version) for part in need.specifier if part.operator == "<"]
        assert len(tops) == 1, f"{need}: one upper bound"
        assert tops[0].major <= pins()[canonicalize_name(need.name)].major + 1, f"{need}: the next major release"


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    for need in NEEDED:
        assert pins()[canonicalize_name(need.name)] in need.specifier, str(need)
    assert len(pins()) > len(NEEDED)  # what those need is pinned as well


def test_pins_are_names_and_releases_that_any_machine_can_install() -> None:
    """No URL, host, path, hash or local version (+cpu), and nothing that only some platforms have."""
    for line in LINES:
        assert line.startswith("# ") or re.fullmatch(PIN, line), line
    assert len(pins()) == sum(not line.startswith("#") for line in LINES)


def make(folder: Path, *words: str, status: int = 0) -> str:
    """What `make` says in a folder that ends so, without the variables of a `make` that runs these tests."""
    names = ("MAKEFLAGS", "MAKELEVEL", "FORCE", "NEWEST", "PYTHON", "VENV")
    env = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(["make", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with this Makefile and a virtual environment into which nothing is installed yet."""
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "constraints.txt", ".venv/.made"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000, 1000))
    return tmp_path


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_installs_what_the_tests_passed_with_or_the_newest(checkout: Path, target: str) -> None:
    assert "install -q -c constraints.txt -e" in make(checkout, "-n", target)
    newest = make(checkout, "-n", target, "NEWEST=1")
    assert "install -q --upgrade --upgrade-strategy eager -e" in newest
    assert "constraints.txt" not in newest


def test_make_installs_again_for_new_constraints_and_the_other_way(checkout: Path) -> None:
    """With `true` in place of pip: only which of the two ways is taken, and when, matters here."""

    def installs(*words: str) -> bool:
        return "Installing" in make(checkout, "install", "PIP=true", *words)

    assert [installs(), installs()] == [True, False]
    os.utime(checkout / "constraints.txt", (2**33, 2**33))
    assert installs()
    os.utime(checkout / "constraints.txt", (1000, 1000))
    assert [installs(), installs("NEWEST=1"), installs("NEWEST=1")] == [False, True, False]
    assert [installs(), installs(), installs("NEWEST=1")] == [True, False, True]


def test_constraints_are_renewed_from_what_is_installed_once_the_tests_have_passed(checkout: Path) -> None:
    """With this environment as the new one, and `pytest --version`, or a run that fails, in place of the suite."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    pinned = checkout / "constraints.txt"
    pinned.write_text("# what this file is\nsuperseded==1.0\n")
    make(checkout, "constraints", "PIP=true", "ARGS=--no-such-option", status=2)
    assert "superseded" in pinned.read_text()
    make(checkout, "constraints", "PIP=true", "ARGS=--version")
    lines = pinned.read_text().splitlines()
    assert lines[0] == "# what this file is"
    assert all(re.fullmatch(PIN, line) for line in lines[1:])
    assert {canonicalize_name(need.name) for need in NEEDED} <= {
        canonicalize_name(line.partition("==")[0]) for line in lines[1:]
    }


@pytest.fixture(scope="module")
def newest() -> ModuleType:
    """The script of `.ci/run` that reports what the newest releases break."""
    spec = importlib.util.spec_from_file_location("newest", ROOT / ".ci" / "newest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fast_half_is_what_took_least_time(newest: ModuleType, tmp_path: Path) -> None:
    cases = [("slow.py", 60), ("quick.py", 1), ("middle.py", 4), ("quick.py", 1), ("skipped.py", 0), ("middle.py", 5)]
    text = "".join(f'<testcase file="{file}" name="test" time="{seconds}"/>' for file, seconds in cases)
    (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    assert newest.quickest(tmp_path / "tests.xml", 11.5) == ["skipped.py", "quick.py", "middle.py"]
    assert newest.quickest(tmp_path / "tests.xml", 10.5) == ["skipped.py", "quick.py"]


def test_the_report_names_what_differs_and_what_breaks(newest: ModuleType, tmp_path: Path) -> None:
    pinned = newest.versions("# a comment\ntorch==2.14.1\nnumpy==2.4.6\nold==1.0\n")
    frozen = newest.versions("torch==2.14.1+cpu\nnumpy==2.5.0\n-e /some/where\nfound @ file:///some/where\nnew==3\n")
    assert newest.differing(pinned, frozen) == ["numpy 2.4.6 -> 2.5.0", "old 1.0 -> none"]
    (tmp_path / "test_three.py").write_text(
        "import pytest\n\n@pytest.fixture\ndef gone():\n    raise OSError('no such\\nthing')\n\n"
        "def test_holds():\n    pass\n\ndef test_breaks():\n    assert 0\n\ndef test_cannot_start(gone):\n    pass\n"
    )
    words = ("-n", "0", "-c", os.devnull, "--rootdir", str(tmp_path), "-o", "junit_family=xunit1")
    done = newest.call(60, sys.executable, "-m", "pytest", *words, f"--junitxml={tmp_path}/x.xml", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    count, lines = newest.broken(tmp_path / "x.xml")
    assert count == 3
    assert [line.partition(": ")[0] for line in lines] == [
        "test_three.py::test_breaks",
        "test_three.py::test_cannot_start",
    ]
    assert "no such thing" in lines[1]


def test_a_failing_install_is_a_line_of_the_report(newest: ModuleType) -> None:
    done = newest.call(60, "make", "no_such_target")
    assert done.returncode == 2
    assert "no_such_target" in newest.last_line(done)
    assert newest.call(1, "sleep", "30").returncode == 124
