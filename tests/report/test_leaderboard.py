"""`python -m backdoor.report`: which records count, what their numbers become, and what is said of the others."""

from __future__ import annotations

import json
import mmap
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backdoor.experiment.memory import peak_memory, restart_peaks
from backdoor.metrics.names import model_name
from backdoor.report.records import collect, newest, run_folders
from helpers.command import environment
from helpers.leaderboard import record, run_report, write

Report = Callable[..., tuple[int, str, str]]
NASTY = "<script>alert(1)</script>|*x*"


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_report(monkeypatch, capsys, *words)


def test_mean_and_deviation_over_seeds(tmp_path: Path, report: Report) -> None:
    values = [0.02, 0.05, 0.11]
    for seed, asr in enumerate(values):
        write(tmp_path / "multirun" / f"{seed}-badnets-abl", seed=seed, asr=asr)
    write(tmp_path / "outputs" / "one", defense="none", asr=1.0)
    assert report("multirun", "outputs", "out=made")[0] == 0
    means = pl.read_csv(tmp_path / "made" / "means.csv")
    cell = means.row(by_predicate=pl.col("defense") == "abl", named=True)
    assert (cell["runs"], cell["mixed"]) == (3, False)
    assert cell["asr_mean"] == pytest.approx(sum(values) / 3)
    assert cell["asr_std"] == pytest.approx(statistics.stdev(values))
    text = (tmp_path / "made" / "report.md").read_text()
    assert "| attack | ratio | none | abl |" in text
    assert "| badnets | 0.1 | 100.0 | 6.0 ± 4.6 |" in text  # (2 + 5 + 11) / 3; sqrt((16 + 1 + 25) / 2) = 4.58


def test_of_several_triggers_the_strongest_counts(tmp_path: Path, report: Report) -> None:
    """Found in a trial: a second trigger at 100 % stood in the leaderboard as the first one's 0.6 %."""
    two = record(asr=0.006)
    two["final"] |= {"asr/second": 0.875, "asr_worst": 0.875}
    write(tmp_path / "runs" / "two", two)
    write(tmp_path / "runs" / "one", attack="blended", asr=0.25)
    assert report("runs")[0] == 0
    rows = {row["attack"]: row for row in pl.read_csv(tmp_path / "report" / "runs.csv").to_dicts()}
    assert [(rows[name]["asr"], rows[name]["asr_worst"]) for name in ("badnets", "blended")] == [
        (0.006, 0.875),
        (0.25, 0.25),
    ]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| badnets | 0.1 | 87.5 |" in text
    assert "| blended | 0.1 | 25.0 |" in text
    assert "ASR worst" in (tmp_path / "report" / "index.html").read_text()


def test_an_untargeted_attack_stands_apart_from_a_targeted_one(tmp_path: Path, report: Report) -> None:
    untargeted = [{"name": "poison", "metric": "asr", "goal": "untargeted", "images": 360}]
    other = record(asr=0.75, attacks=untargeted)
    other["config"]["attack"]["label_map"] = "random"
    write(tmp_path / "runs" / "any", other)
    write(tmp_path / "runs" / "one", asr=0.25)  # as records were before they told their goal
    assert report("runs")[0] == 0
    goals = {row["asr"]: row["goal"] for row in pl.read_csv(tmp_path / "report" / "runs.csv").to_dicts()}
    assert goals == {0.75: "untargeted", 0.25: "targeted"}
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| badnets | 0.1 untargeted | 75.0 |" in text
    assert "| badnets | 0.1 | 25.0 |" in text
    assert "0.1 untargeted" in (tmp_path / "report" / "index.html").read_text()


def test_a_row_a_run_in_csv_and_parquet(tmp_path: Path, report: Report) -> None:
    write(tmp_path / "runs" / "a")
    clean = record(attack="none", defense="none", ratio=None)
    del clean["final"]["asr"], clean["peak_memory"]["ram"]
    write(tmp_path / "runs" / "b", clean)
    assert report("runs")[0] == 0
    table = pl.read_parquet(tmp_path / "report" / "runs.parquet")
    assert table["attack"].to_list() == ["badnets", "none"]
    row, other = table.to_dicts()
    assert (row["asr"], row["victim_asr"], row["precision"], row["ram"]) == (0.01, 1.0, 0.98, 1_500_000_000)
    assert (row["run"], row["commit"], row["seconds"]) == ("../runs/a", "abc", 60.0)
    assert (other["asr"], other["ratio"], other["ram"]) == (None, None, None)  # not known, and not 0
    assert pl.read_csv(tmp_path / "report" / "runs.csv").height == 2


def without(name: str) -> str:
    return json.dumps({key: value for key, value in record().items() if key != name})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(record())[:300], "damaged or half written"),
        ("", "damaged or half written"),
        ("[" * 100_000, "damaged or half written"),
        ("[1, 2]", "no record of a run"),
        (json.dumps(record(schema=1)), "schema 1, expected 2: made by an older backdoor; run it again"),
        (json.dumps(record(schema=3)), "schema 3, expected 2: made by a newer backdoor; update this one"),
        (without("schema"), "no record of a run"),
        (without("config"), "expected config to be dict, got None"),
        (json.dumps(record(final={"asr": "high"})), "expected asr to be a number of at least 0, got 'high'"),
        (json.dumps(record(final={"asr": float("nan")})), "expected asr to be a number of at least 0, got nan"),
        (json.dumps(record(final={"c_acc": 93.5})), "expected c_acc to be a fraction from 0 to 1, got 93.5"),
        (json.dumps(record(seed="0")), "expected seed to be int"),
        (json.dumps(record(seed=10**30)), "expected seed to be int"),
        (json.dumps(record(seconds=10**400)), "expected seconds to be a number"),
        (json.dumps(record(peak_memory={"ram": 10**30})), "expected ram to be a number"),
        (json.dumps(record()).replace('"started": "', '"started": ' + "[" * 900 + "]" * 900 + ', "": "'), "damaged"),
        (" " * (16 * 2**20 + 1), "result.json has more than 16 MB"),
    ],
)
def test_a_bad_record_is_one_line_and_stops_nothing(tmp_path: Path, report: Report, content: str, said: str) -> None:
    write(tmp_path / "runs" / "bad", content)
    write(tmp_path / "runs" / "good")
    status, out, errors = report("runs")
    assert (status, len(errors.splitlines())) == (0, 1)
    assert errors.startswith("skipped: runs/bad: ")
    assert said in errors
    assert out.startswith("1 run ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and device files")
@pytest.mark.timeout(60)
def test_what_is_no_file_is_named_and_not_read(tmp_path: Path, report: Report) -> None:
    for name in ("pipe", "zero", "loop", "folder", "status", "l\x1b[1mine\nend"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "runs" / "pipe" / "result.json")
    os.mkfifo(tmp_path / "runs" / "status" / "status.json")
    (tmp_path / "runs" / "zero" / "result.json").symlink_to("/dev/zero")
    (tmp_path / "runs" / "loop" / "result.json").symlink_to("result.json")
    (tmp_path / "runs" / "folder" / "result.json").mkdir()
    write(tmp_path / "runs" / "l\x1b[1mine\nend", "[]")
    write(Path(os.fsdecode(bytes(tmp_path / "runs") + b"/\xff")))
    write(tmp_path / "runs" / "good", record(attack="a\ud800b", peak_memory={"ram": 1.5e9}))
    status, out, errors = report("runs")
    assert (status, out.startswith("1 run ")) == (0, True)
    said = dict(line.removeprefix("skipped: runs/").split(": ", 1) for line in errors.splitlines())
    assert said.pop("zero") == said.pop("pipe") == "result.json is no regular file"
    assert said.pop("folder") == "result.json cannot be read (Is a directory)"
    assert said.pop("status") == "no result.json (state unknown)"
    assert said.pop("\\udcff") == "its name is not UTF-8, as the tables are; rename it"
    assert said.pop("loop").startswith("result.json cannot be read (")
    assert said == {"l\\x1b[1mine\\nend": "result.json is no record of a run (it has no schema)"}
    assert pl.read_csv(tmp_path / "report" / "runs.csv")["attack"].to_list() == ["a\\ud800b"]


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    for name, status in {"a": {"state": "failed", "error": "UserError: no\nroom"}, "b": {"state": "running"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(json.dumps(status))
    reasons = [reason.removeprefix("no result.json ") for reason in collect([tmp_path]).skipped.values()]
    assert reasons == ["(failed: UserError: no room)", "(running)"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("empty",), "empty: no record of a finished run found"),
        (("nowhere",), "nowhere: expected a folder with runs, found none"),
        (("out=x",), "expected folders with runs and perhaps out=FOLDER"),
        (("good", "out="), "expected folders with runs and perhaps out=FOLDER"),
        (("good", "out=file"), "out=file: expected a writable folder"),
    ],
)
def test_nothing_to_report_is_one_line_and_2(tmp_path: Path, report: Report, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write(tmp_path / "good")
    status, _, errors = report(*words)
    assert (status, len(errors.splitlines())) == (2, 1)
    assert errors.startswith(f"error: {said}")


def test_a_missing_library_is_named(tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("page", "tables", "charts"):
        monkeypatch.delitem(sys.modules, f"backdoor.report.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "polars", None)
    status, _, errors = report(str(write(tmp_path / "run")))
    assert (status, errors) == (2, "error: backdoor.report: needs polars; pip install 'backdoor[report]'\n")


def test_each_run_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "old", asr=0.5)
    write(tmp_path / "new", record(asr=0.1, started="2026-11-22T10:00:00+00:00"))
    write(tmp_path / "other seed", seed=1)
    folders = list(run_folders([tmp_path, tmp_path / "old"]))
    assert sorted(folder.name for folder in folders) == ["new", "old", "other seed"]
    assert [(row["seed"], row["asr"]) for row in newest(collect([tmp_path]).rows)] == [(0, 0.1), (1, 0.01)]


def test_runs_of_other_settings_are_marked(tmp_path: Path, report: Report) -> None:
    for epochs in (1, 2):
        changed: dict[str, Any] = record(asr=0.1 * epochs)
        changed["config"]["victim"] = {"epochs": epochs}
        write(tmp_path / "runs" / str(epochs), changed)
    assert report("runs")[0] == 0
    assert "15.0 ± 7.1\\*" in (tmp_path / "report" / "report.md").read_text()


def test_all_text_is_escaped(tmp_path: Path, report: Report) -> None:
    nasty = tmp_path / "runs" / "<script>alert(2)<" / "javascript:alert(3)"
    content = record(attack=NASTY, defense=NASTY) | {"data": NASTY, "model": NASTY}
    write(nasty, content)
    assert report("runs")[0] == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "../runs/%3Cscript%3Ealert%282%29%3C/javascript%3Aalert%283%29/figures/" in page
    table = (tmp_path / "report" / "report.md").read_text()
    assert "<script" not in table
    assert "\\|\\*x\\*" in table


def test_a_model_is_told_from_its_kin() -> None:
    assert model_name({"_target_": "a.WideResNet", "depth": 28, "widen": 10, "resize": None}) == "WideResNet-28-10"
    assert model_name({"_target_": "a.torchvision_net", "name": "vgg19", "stem": "small"}) == "vgg19"
    assert model_name({"_target_": "a.preact_resnet18", "final_bn": False}) == "preact_resnet18"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget a peak of memory")
def test_the_peak_is_that_of_the_job() -> None:
    restart_peaks()
    before = peak_memory()["ram"]
    block = mmap.mmap(-1, 300_000_000)  # what malloc is given back it may keep
    for at in range(0, len(block), mmap.PAGESIZE):  # touched, or the system would not hold it
        block[at] = 1
    assert peak_memory()["ram"] > before + 200_000_000
    block.close()
    restart_peaks()
    assert peak_memory()["ram"] < before + 100_000_000


def test_help_waits_for_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.argv[1:] = ['--help']\ntry: runpy.run_module('backdoor.report', run_name='__main__')\n"
    )
    code += "finally: print('slow:', sorted({'torch', 'polars', 'plotly', 'hydra', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), timeout=60
    )
    assert "RUNS... [out=FOLDER]" in done.stdout
    assert "slow: []" in done.stdout, done.stderr
