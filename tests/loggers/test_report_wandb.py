"""The W&B logger, offline, read back from what W&B's own process wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from backdoor.errors import UserError
from backdoor.figures.figures import stage_curves
from backdoor.loggers.base import Label, Sample
from backdoor.loggers.wandb import WandbLogger, summary_keys
from helpers.report import CONF, RESULT, ROWS, STAGES, ended, items, kind, read_csv


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No W&B key, and nothing of W&B outside of the test's folder."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))


@pytest.mark.usefixtures("no_account")
def test_wandb_offline_gets_the_keys_of_the_csv(tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        logger = instantiate(compose("logger/wandb_offline").logger, _convert_="all")
    run = tmp_path / "run"
    picture = stage_curves(STAGES, tmp_path / "stages.png")
    logger.start({"attack": {"ratio": 0.1}}, run, Label("badnets-abl", "study", "abl", ["smoke"]))
    logger.samples([Sample(7, "poison", "cat", "dog", np.zeros((4, 4, 3), dtype=np.uint8))])
    for row in ROWS:
        logger.log(row)
    logger.finish(RESULT, [picture, tmp_path / "skipped.svg"])

    records = ended(run)
    history = [items(record.history.item) for record in records if kind(record) == "history"]
    first, *kept = ({key: value for key, value in row.items() if not key.startswith("_")} for row in history)
    assert (first["poisoned/_type"], first["poisoned/nrows"]) == ("table-file", 1)
    assert kept[:3] == ROWS
    columns = read_csv(run)[0]
    assert set().union(*kept[:3]) == set(columns)
    assert kept[3]["figures/stages/_type"] == "image-file"
    assert list(run.glob("wandb/offline-run-*/files/media/images/figures/stages*.png"))

    summary: dict[str, Any] = {}
    for record in records:
        if kind(record) == "summary":
            summary |= items(record.summary.update)
    assert {key: summary[key] for key in summary_keys(RESULT)} == summary_keys(RESULT)
    assert summary["final/asr"] == 0.012
    (begun,) = [record.run for record in records if kind(record) == "run"][:1]
    assert (begun.project, begun.display_name, begun.run_group, begun.job_type) == (
        "backdoor",
        "badnets-abl",
        "study",
        "abl",
    )
    assert list(begun.tags) == ["smoke"]
    assert items(begun.config.update)["attack"] == {"ratio": 0.1}


@pytest.mark.usefixtures("no_account")
def test_wandb_without_a_key_goes_on_offline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        logger = WandbLogger(project="p")
        logger.start({}, tmp_path / name, Label(name))
        logger.log({"loss": 1.0})
        logger.finish({})
        logger.finish({})
        (end,) = (record.exit for record in ended(tmp_path / name) if kind(record) == "exit")
        assert end.exit_code == 1, "a run without a result has failed"
    said = [line for line in capfd.readouterr().out.splitlines() if "wandb" in line]
    assert len(said) == 2
    assert "no API key" in said[0]


def test_unknown_wandb_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"logger\.wandb\.mode: expected one of online, offline"):
        WandbLogger(mode="of")


def test_summary_is_flat_and_numeric() -> None:
    flat = summary_keys(RESULT)
    assert flat["final/der"] == 0.97
    assert flat["isolate/detection/precision"] == 0.98
    assert flat["unlearn_lr0/asr"] == 0.99
    assert "victim/name" not in flat
