"""A wheel, an sdist and an editable install all find conf/, and the whole of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from backdoor import __version__
from backdoor.configs.places import conf_dir

ROOT = Path(__file__).parents[2]
YAMLS = sorted(str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml"))

BACKEND = "import sys, hatchling.build as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


def build(what: str, source: Path, folder: Path) -> Path:
    """Call the build backend as pip does; the file that it wrote."""
    command = [sys.executable, "-c", BACKEND, what, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def run(site: Path, *args: str, cwd: Path) -> str:
    """Run python with only `site` added to its path."""
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-P", *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def yamls(site: Path) -> list[str]:
    conf = site / "backdoor" / "conf"
    return sorted(str(path.relative_to(conf)) for path in conf.rglob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("build_wheel", ROOT, folder)) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_checkout_uses_its_own_conf() -> None:
    assert conf_dir() == ROOT / "conf"
    assert YAMLS


def test_a_wheel_holds_every_yaml_and_every_module(wheel: Path) -> None:
    assert yamls(wheel) == YAMLS
    source = ROOT / "src"
    modules = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    packed = {str(path.relative_to(wheel)) for path in wheel.rglob("*.py")} - {"backdoor/conf/__init__.py"}
    assert packed == modules
    assert (wheel / "backdoor" / "py.typed").exists()
    assert {path.name for path in wheel.iterdir()} == {
        "backdoor",
        "hydra_plugins",  # a folder that all plugins of Hydra share
        f"backdoor-{__version__}.dist-info",
    }


def test_a_wheel_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    listed = run(wheel, "-m", "backdoor.list", cwd=tmp_path)
    assert "attack=badnets " in listed
    where = run(wheel, "-c", "from backdoor.configs.places import conf_dir; print(conf_dir())", cwd=tmp_path)
    assert where.strip() == str(wheel / "backdoor" / "conf")
    shown = run(wheel, "-m", "backdoor", "--cfg", "job", cwd=tmp_path)
    assert shown == run(ROOT / "src", "-m", "backdoor", "--cfg", "job", cwd=tmp_path)


def test_a_wheel_made_from_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", ROOT, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"backdoor-{__version__}"
    for name in (
        "LICENSE",
        "README.md",
        "Makefile",
        "CITATION.cff",
        "constraints.txt",
        "tests",
        "conf/config.yaml",
        "pyproject.toml",
    ):
        assert (unpacked / name).exists(), name
    with zipfile.ZipFile(build("build_wheel", unpacked, tmp_path)) as archive:
        again = {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}
    first = {str(path.relative_to(wheel)): path.read_bytes() for path in wheel.rglob("*") if path.is_file()}
    assert again == {name: data for name, data in first.items() if not name.endswith("RECORD")}


def test_an_editable_install_uses_the_checkout(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("build_editable", ROOT, tmp_path)) as archive:
        links = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".pth")]
    assert len(links) == 1
    assert Path(links[0].strip()) == ROOT / "src"
    code = "from backdoor.configs.places import conf_dir; print(conf_dir())"
    assert run(Path(links[0].strip()), "-c", code, cwd=tmp_path).strip() == str(ROOT / "conf")


def test_versions_agree() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    """With a stand-in for the interpreter: this one, told that it is older."""
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    old = tmp_path / "python3.10"
    code = "import sys; sys.version_info = (3, 10, 1); exec(sys.argv[2])"
    old.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{code}' \"$@\"\n")
    old.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "FORCE", "PYTHON")}
    done = subprocess.run(
        ["make", "demo", f"PYTHON={old}"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "expected Python 3.11 to 3.13, got 3.10; name another with PYTHON=python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()
