"""What a run writes down: metrics.csv, through one logger or several, and its environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from backdoor.errors import UserError
from backdoor.experiment.environment import environment, git_commit
from backdoor.loggers.base import CSVLogger, Loggers, RunLogger
from helpers.report import CONF, RESULT, ROWS, read_csv


def test_csv_grows_columns_under_one_header(tmp_path: Path) -> None:
    logger = CSVLogger()
    logger.start({"seed": 0}, tmp_path / "run")
    seen = []
    for row in ROWS:
        logger.log(row)
        seen.append(len(read_csv(tmp_path / "run")))
    logger.finish(RESULT)
    assert seen == [1, 2, 3], "each row is on disk at once"
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert lines == [
        "stage,epoch,loss,c_acc,asr",
        "victim,0,1.25,,",
        "victim,1,0.5,0.9,",
        "unlearn,0,-0.5,,0.25",
    ]
    assert [item.name for item in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_csv_goes_on_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("stage,epoch,loss\nvictim,0,1.5\nvictim,1,0.9\nvictim,2,0.")
    logger = CSVLogger()
    logger.start({}, tmp_path)
    logger.log({"stage": "victim", "epoch": 1, "loss": 0.75})
    logger.log({"stage": "victim", "epoch": 2, "loss": 0.5})
    assert [(row["epoch"], row["loss"]) for row in read_csv(tmp_path)] == [
        ("0", "1.5"),
        ("1", "0.75"),
        ("2", "0.5"),
    ]


@pytest.mark.parametrize("left", [b"\x80\x81\n", b'a,b\n"1,2\n', b"a\0b\n" + b"\xff", None])
def test_csv_that_cannot_be_read_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.mkdir() if left is None else path.write_bytes(left)
    logger = CSVLogger()
    logger.start({}, tmp_path)
    logger.log({"stage": "victim", "epoch": 0})
    assert [row["epoch"] for row in read_csv(tmp_path)] == ["0"]
    assert (tmp_path / "metrics.csv.bad").exists()
    assert "is set aside" in caplog.text


def test_csv_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"hydra\.run\.dir: expected to write .*metrics\.csv"):
        CSVLogger().start({}, tmp_path / "file")


class Broken(CSVLogger):
    def finish(self, result: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
        raise OSError("no network")


def test_each_logger_is_finished(tmp_path: Path) -> None:
    first, second = CSVLogger(), Broken()
    both: RunLogger = Loggers(first=first, second=second)
    both.start({}, tmp_path)
    both.log(ROWS[0])
    with pytest.raises(OSError, match="no network"):
        both.finish({})
    assert first.path is None


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF / "logger").glob("*.yaml")))
def test_every_logger_config_builds(choice: str) -> None:
    text = (CONF / "logger" / f"{choice}.yaml").read_text()
    assert text.startswith("# ")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        logger = instantiate(compose(f"logger/{choice}").logger, _convert_="all")
    parts = logger.loggers if choice != "csv" else (logger,)
    assert isinstance(parts[0], CSVLogger)
    assert [part.mode for part in parts[1:]] == {"wandb_offline": ["offline"], "wandb": ["online"]}.get(choice, [])


def test_environment_is_useful_and_private(monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import platform

    found = json.dumps(environment())
    record = json.loads(found)
    assert record["packages"]["torch"] == torch.__version__
    assert record["device"]["cpu_count"] >= 1
    assert str(Path.home()) not in found
    assert str(Path(__file__).parent) not in found
    assert platform.node() not in found.replace(record["platform"], "")
    assert f'"{getpass.getuser()}"' not in found
    monkeypatch.setenv("PATH", "")
    assert "git" not in environment(), "without git there is no commit to name"


def test_only_the_own_checkout_names_a_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    module = tmp_path / "environment.py"
    module.write_text("a = 1")
    assert git_commit(tmp_path) is None, "inside somebody's checkout, but not tracked by it"
    git("add", "environment.py")
    git("commit", "-m", "first")
    assert git_commit(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    module.write_text("a = 2")
    assert git_commit(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
