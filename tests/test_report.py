"""What a run shows and leaves, read back from the files and the screen."""

from __future__ import annotations

import csv
import io
import json
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from backdoor.errors import UserError
from backdoor.report import console as screen
from backdoor.report.environment import environment, git_commit
from backdoor.report.figures import epoch_curves, loss_histogram, stage_curves, trigger_gallery
from backdoor.report.loggers import CSVLogger, Loggers, RunLogger
from backdoor.report.wandb_logger import WandbLogger, summary_keys

CONF = Path(__file__).parent.parent / "conf"
STAGES = [
    {
        "name": "victim",
        "c_acc": 0.936,
        "c_acc_non_target": 0.93,
        "asr": 0.999,
        "r_acc": 0.001,
        "seconds": 61.04,
    },
    {"name": "isolate", "c_acc": 0.9, "asr": 1.0, "detection": {"precision": 0.98}, "seconds": 2.0},
    {"name": "unlearn", "c_acc": 0.9, "asr": 0.012, "r_acc": 0.89, "der": 0.97, "seconds": 3.0},
    {"name": "unlearn_lr0", "c_acc": 0.92, "asr": 0.99, "der": 0.5, "seconds": 3.0, "control": True},
]
RESULT = {"schema": 1, "stages": STAGES, "final": {"c_acc": 0.9, "asr": 0.012, "r_acc": 0.89, "der": 0.97}}
ROWS: list[dict[str, float | int | str]] = [
    {"stage": "victim", "epoch": 0, "loss": 1.25},
    {"stage": "victim", "epoch": 1, "loss": 0.5, "c_acc": 0.9},
    {"stage": "unlearn", "epoch": 0, "loss": -0.5, "asr": 0.25},
]


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(matplotlib.image.imread(path))[..., :3]


# --- figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.uint8), (1, torch.uint8), (3, torch.float32)])
def test_gallery_shows_the_trigger_and_grey_elsewhere(tmp_path: Path, channels: int, dtype: torch.dtype) -> None:
    clean = torch.full((9, channels, 16, 16), 60, dtype=torch.uint8)
    triggered = clean.clone()
    triggered[..., -8:, -8:] = 200
    if dtype == torch.float32:
        clean, triggered = clean / 255, triggered / 255
    labels = torch.arange(9)
    path = trigger_gallery(
        clean, triggered, tmp_path / "deep" / "gallery.png", labels=labels, targets=labels, classes=["$a"] * 9
    )
    shown = pixels(path)
    unstamped, stamp, grey = ((np.abs(shown - level).max(-1) < 0.003).sum() for level in (60 / 255, 200 / 255, 0.5))
    # Of each image a quarter bears the trigger: 8 clean ones, then 3/4 and 1/4, then 3/4 in mid-grey.
    assert stamp / unstamped == pytest.approx(0.25 / 1.75, rel=0.05)
    assert grey / unstamped == pytest.approx(0.75 / 1.75, rel=0.05)
    assert [item.name for item in path.parent.iterdir()] == ["gallery.png"], "no temporary file is left"


def test_gallery_amplifies_small_residuals_only(tmp_path: Path) -> None:
    clean = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    weak = pixels(trigger_gallery(clean, clean + 1, tmp_path / "weak.png"))
    # 1/255 amplified 64 times above mid-grey
    assert (np.abs(weak - (0.5 + 64 / 255)).max(-1) < 0.01).mean() > 0.05
    with pytest.raises(ValueError, match="two equal"):
        trigger_gallery(clean, clean[:1], tmp_path / "x.png")
    with pytest.raises(ValueError, match="N > 0"):
        trigger_gallery(clean[:0], clean[:0], tmp_path / "x.png")


def test_histogram_separates_clean_from_poisoned(tmp_path: Path) -> None:
    poisoned = torch.arange(1000) < 100
    scores = torch.where(poisoned, 5.0, 0.0) + torch.linspace(0, 1, 1000)
    path = loss_histogram(scores, poisoned, poisoned, tmp_path / "a.png", title="50 % $x")
    shown = pixels(path)
    middle = shown[: int(shown.shape[0] * 0.75)]
    orange = (middle[..., 0] > middle[..., 2] + 0.2).nonzero()[1]
    blue = (middle[..., 2] > middle[..., 0] + 0.2).nonzero()[1]
    assert len(orange)
    assert blue.max() < orange.min(), "the two groups lie apart, poisoned to the right"
    unknown = pixels(loss_histogram(scores, None, None, tmp_path / "b.png", title="unknown"))
    assert np.ptp(unknown, axis=-1).max() < 0.02, "without the truth there is one grey histogram"


@pytest.mark.parametrize("scores", [torch.full((50,), 2.0), torch.tensor([0.0, float("nan"), float("inf"), -1])])
def test_histogram_survives_odd_scores(tmp_path: Path, scores: torch.Tensor) -> None:
    flagged = torch.zeros(len(scores), dtype=torch.bool)
    assert loss_histogram(scores, flagged, ~flagged, tmp_path / "a.svg", "t").stat().st_size > 1000


def test_histogram_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one finite"):
        loss_histogram(torch.full((3,), float("nan")), None, None, tmp_path / "a.png", "t")
    with pytest.raises(ValueError, match="poisoned: expected bool"):
        loss_histogram(torch.zeros(3), torch.zeros(2, dtype=torch.bool), None, tmp_path / "a.png", "t")
    assert not list(tmp_path.iterdir())


def test_curves_label_what_is_known(tmp_path: Path) -> None:
    # Matplotlib's SVG keeps each written text as a comment.
    full = stage_curves(STAGES, tmp_path / "stages.svg").read_text()
    for text in ("93.6", "1.2", "89.0", "unlearn", "(control)", "R-Acc"):
        assert f"<!-- {text} -->" in full
    bare = stage_curves([{"name": "victim", "c_acc": 0.5}], tmp_path / "bare.svg").read_text()
    assert "<!-- 50.0 -->" in bare
    assert "ASR" not in bare
    with pytest.raises(ValueError, match="at least one"):
        stage_curves([], tmp_path / "none.svg")


def test_epoch_curves_read_the_csv(tmp_path: Path) -> None:
    logger = CSVLogger()
    logger.start({}, tmp_path)
    for row in ROWS:
        logger.log(row)
    drawn = epoch_curves(read_csv(tmp_path), tmp_path / "epochs.svg").read_text()
    for text in ("victim", "unlearn", "C-Acc", "ASR", "training loss"):
        assert f"<!-- {text} -->" in drawn
    with pytest.raises(ValueError, match="at least one"):
        epoch_curves([], tmp_path / "none.svg")


# --- console -----------------------------------------------------------------------------------------------


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


# --- loggers -----------------------------------------------------------------------------------------------


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


def wandb_records(folder: Path) -> list[Any]:
    """The records of the one .wandb file: LevelDB's log format, 32 KiB blocks with pieces of records."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, piece, records = path.read_bytes(), 7, b"", []
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, part = struct.unpack("<IHB", data[at : at + 7])
        piece += data[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # a whole record, or the last piece of one
            records.append(wandb_internal_pb2.Record.FromString(piece))
            piece = b""
    return records


def kind(record: Any) -> str:
    return str(record.WhichOneof("record_type"))


def ended(folder: Path) -> list[Any]:
    """The records once W&B's own process has written the last one, shortly after the run has finished."""
    deadline = time.monotonic() + 30
    while not (records := wandb_records(folder)) or kind(records[-1]) != "exit":
        assert time.monotonic() < deadline, [kind(record) for record in records]
        time.sleep(0.05)
    return records


def items(updates: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


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
    logger.start({"attack": {"ratio": 0.1}}, run, name="badnets-abl", group="study", tags=["smoke"])
    for row in ROWS:
        logger.log(row)
    logger.finish(RESULT, [picture, tmp_path / "skipped.svg"])

    records = ended(run)
    history = [items(record.history.item) for record in records if kind(record) == "history"]
    kept = [{key: value for key, value in row.items() if not key.startswith("_")} for row in history]
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
    assert (begun.project, begun.display_name, begun.run_group) == ("backdoor", "badnets-abl", "study")
    assert list(begun.tags) == ["smoke"]
    assert items(begun.config.update)["attack"] == {"ratio": 0.1}


@pytest.mark.usefixtures("no_account")
def test_wandb_without_a_key_goes_on_offline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        logger = WandbLogger(project="p")
        logger.start({}, tmp_path / name, name)
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


# --- environment -------------------------------------------------------------------------------------------


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
