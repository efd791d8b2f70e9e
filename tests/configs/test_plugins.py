"""Another installed package's attacks and defenses are choices like our own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import QUICK, environment, read_json

TRIGGER = """
from backdoor.triggers.base import Trigger


class Dot(Trigger):
    def paint(self, x, index):
        x[:, :, 0, 0] = 255
        return x
"""
ATTACK = """# A white pixel in the corner, from elsewhere.
defaults:
  - base/dirty_label@_here_
  - /trigger@trigger: dot
  - _self_
name: ghost
"""
DEFENSE = """# Nothing at all, from elsewhere.
name: seance
stages: {}
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed package `ghostly`, as pip leaves one: files and a dist-info."""
    place = tmp_path / "site"
    files = {
        "ghostly/__init__.py": "raise RuntimeError('listing must not import a package')\n",
        "ghostly/conf/attack/ghost.yaml": ATTACK,
        "ghostly/conf/trigger/dot.yaml": "# A dot.\n_target_: ghostly.dot.Dot\n",
        "ghostly/conf/defense/seance.yaml": DEFENSE,
        "ghostly/conf/attack/badnets.yaml": "# An impostor.\nname: impostor\n",
        "ghostly-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ghostly\nVersion: 1.0\n",
        "ghostly-1.0.dist-info/entry_points.txt": "[backdoor.conf]\nghostly = ghostly.conf\n",
    }
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def run(package: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A real process that has the package."""
    variables = environment(cwd / "cache")
    variables["PYTHONPATH"] = f"{package}:{variables.get('PYTHONPATH', '')}"
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, env=variables, cwd=cwd)


def test_listed_with_its_comment_without_being_imported(package, tmp_path):
    said = run(package, tmp_path, "backdoor.list", "attack", "defense").stdout
    assert "attack=ghost" in said
    assert "A white pixel in the corner, from elsewhere." in said
    assert "defense=seance" in said
    assert "impostor" not in said  # a name of this package's own stays what it is


def test_runs_in_a_sweep_and_is_suggested(package, tmp_path):
    (package / "ghostly" / "__init__.py").write_text("")
    (package / "ghostly" / "dot.py").write_text(TRIGGER)
    words = ("attack=ghost,badnets", "defense=seance", "attack.target=3", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    done = run(package, tmp_path, "backdoor", "-m", *QUICK, *words)
    assert done.returncode == 0, done.stderr
    results = [read_json(tmp_path / "sweep" / f"{job}-seance") for job in ("0-ghost", "1-badnets")]
    assert [result["attack"] for result in results] == ["ghost", "badnets"]
    assert all("asr" in result["final"] for result in results)

    wrong = run(package, tmp_path, "backdoor", "attack=gost")
    assert wrong.returncode == 2
    assert "ghost" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_a_package_without_its_folder_is_named(package, tmp_path):
    (package / "ghostly-1.0.dist-info" / "entry_points.txt").write_text("[backdoor.conf]\nghostly = ghostly.config\n")
    for words in (("backdoor.list",), ("backdoor", "defense=none")):
        done = run(package, tmp_path, *words)
        assert done.returncode == 2
        assert "package ghostly: its entry point ghostly = ghostly.config" in done.stderr
        assert len(done.stderr.splitlines()) == 1
