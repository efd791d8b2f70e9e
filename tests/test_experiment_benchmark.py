"""experiments/benchmark_cpu: its text shows what its results say, and a run's row says what the run says."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers_finished import finished as finished  # a fixture

STUDY = Path(__file__).parents[1] / "experiments" / "benchmark_cpu"


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
