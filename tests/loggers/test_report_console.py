"""What a run shows on the screen: the closing table, a line a stage, one progress bar."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from backdoor.loggers import console as screen
from helpers.report import RESULT, STAGES


def table_text(**options: Any) -> str:
    stream = io.StringIO()
    folder = Path("outputs") / ("x" * 90)
    screen.closing_table(RESULT, folder, console=Console(file=stream, width=80, **options))
    return stream.getvalue()


def test_closing_table_fits_80_columns_and_pipes() -> None:
    text = table_text()
    assert "\x1b" not in text
    *table, folder = text.splitlines()
    assert all(len(line) <= 80 for line in table)
    assert folder == f"Folder: outputs/{'x' * 90}", "the folder is one line, to be copied"
    cells = {line.split()[0]: line.split()[1:] for line in table if line.split()}
    assert cells["victim"] == ["93.6", "93.0", "99.9", "0.1", "-", "-", "61.0"]
    assert cells["isolate"] == ["90.0", "-", "100.0", "-", "-", "98.0", "2.0"]
    assert cells["unlearn"] == ["90.0", "-", "1.2", "89.0", "97.0", "-", "3.0"]
    assert "(control)" in text


def test_a_stage_called_control_is_not_marked_twice() -> None:
    stream = io.StringIO()
    stages = [{"name": name, "c_acc": 0.5, "control": True} for name in ("control", "unlearn")]
    screen.closing_table({"stages": stages}, Path("outputs"), console=Console(file=stream, width=80))
    names = [line.partition("50.0")[0].strip() for line in stream.getvalue().splitlines() if "50.0" in line]
    assert names == ["control", "unlearn (control)"]


def test_closing_table_dims_the_control_only() -> None:
    lines = table_text(force_terminal=True, color_system="standard").splitlines()
    dimmed = [line for line in lines if "\x1b[2m" in line]
    assert dimmed
    assert all("unlearn_lr0" in line or "(control)" in line for line in dimmed)


def test_stage_line_is_one_plain_line() -> None:
    stream = io.StringIO()
    screen.stage_line("victim", STAGES[0], 61.04, "[hit] " * 20, console=Console(file=stream, width=80))
    line = stream.getvalue()
    assert line.count("\n") == 1
    for part in ("victim", "C-Acc  93.6 %", "ASR  99.9 %", "R-Acc   0.1 %", "61.0 s", "[hit]"):
        assert part in line
    stream = io.StringIO()
    screen.stage_line("prune", {"c_acc": 0.5}, 1, console=Console(file=stream, width=80))
    assert "ASR" not in stream.getvalue()


class Tiny(pl.LightningModule):
    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.layer, self.fail = torch.nn.Linear(2, 2), fail

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.fail and batch_idx == 2:
            raise RuntimeError("stop here")
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Unsized(IterableDataset):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter([(torch.randn(2), torch.tensor(0))] * 10)


ROWS_20 = TensorDataset(torch.randn(20, 2), torch.zeros(20, dtype=torch.int64))


def fit(
    tmp_path: Path,
    terminal: bool,
    *,
    fail: bool = False,
    progress: bool = True,
    data: Dataset = ROWS_20,
    **limits: int,
) -> str:
    stream = io.StringIO()
    bar = screen.StageProgress(
        "unlearn", progress, Console(file=stream, width=100, force_terminal=terminal, color_system=None)
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[bar],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        default_root_dir=tmp_path,
        **limits,
    )
    trainer.fit(Tiny(fail), DataLoader(data, batch_size=5))
    return stream.getvalue()


def test_progress_shows_one_bar_and_takes_it_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    drawn = fit(tmp_path, True, max_epochs=3)
    for part in ("unlearn", "epoch 1/3", "step 1/12", "loss ", "img/s"):
        assert part in drawn
    assert drawn.endswith("\x1b[2K"), "the last thing written erases the bar's line"
    assert "step 1/6" in fit(tmp_path, True, max_steps=6, max_epochs=-1)
    assert "epoch 1/2  step 1  loss" in fit(tmp_path, True, data=Unsized(), max_epochs=2)


def test_progress_is_quiet_where_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert fit(tmp_path, False, max_epochs=1) == ""
    assert fit(tmp_path, True, progress=False, max_epochs=1) == ""
    monkeypatch.setenv("CI", "true")
    assert fit(tmp_path, True, max_epochs=1) == ""


def test_progress_is_gone_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(RuntimeError, match="stop here"):
        fit(tmp_path, True, fail=True, max_epochs=1)
    # A bar that was left running would refuse the next one: only one live display may be on a console.
    assert "img/s" in fit(tmp_path, True, max_epochs=1)
