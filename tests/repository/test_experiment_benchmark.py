"""experiments/benchmark_cpu: its text shows what its results say, and a run's row says what the run says."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.finished import finished as finished  # a fixture

STUDY = Path(__file__).parents[2] / "experiments" / "benchmark_cpu"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(STUDY, tmp_path / "study"))


def tables(study: Path, *runs: Path) -> str:
    """What the script prints."""
    command = [sys.executable, study / "tables.py", *runs]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_the_text_has_the_tables_of_the_results(study):
    text = (STUDY / "README.md").read_text()
    parts = tables(study).strip().split("\n\n### ")
    assert len(parts) > 8
    for part in parts:
        assert part.removeprefix("### ") in text


def test_a_run_is_taken_in_once(study, finished):
    for _ in range(2):
        tables(study, finished)
    with (study / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == "digits"]
    (row,) = rows
    final = json.loads((finished / "result.json").read_text())["final"]
    assert (row["attack"], row["defense"], row["seed"]) == ("badnets", "none", "3")
    assert row["attack_settings"] == "target=4"
    assert float(row["asr"]) == pytest.approx(final["asr"], abs=1e-6)
    assert float(row["c_acc"]) == pytest.approx(final["c_acc"], abs=1e-6)
    assert row["der"] == ""


def test_what_is_no_finished_run_is_refused(study, tmp_path):
    done = subprocess.run([sys.executable, study / "tables.py", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{tmp_path}: expected the folder of a finished run, with result.json in it"


def test_two_runs_for_one_cell_are_refused(study):
    rows = (study / "results.csv").read_text().splitlines()
    twin = next(row for row in rows if row.startswith("cifar10,badnets,,none,,0,"))
    (study / "results.csv").write_text("\n".join([*rows, twin.replace("none,,0,", "none,,1,")]) + "\n")
    done = subprocess.run([sys.executable, study / "tables.py"], capture_output=True, text=True, timeout=120)
    assert "two runs for ('cifar10', 'badnets', 'none')" in done.stderr
