"""What a run says on the screen: one bar while a stage fits, one line a stage, one table at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.data import extract_batch_size
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from backdoor.metrics.names import shown_name

# Reading a loss off an accelerator waits for it: a few times a second is enough for the eye.
REFRESH_SECONDS = 0.25
COLUMNS = {
    "c_acc": "C-Acc\nall",
    "c_acc_non_target": "C-Acc\nnon-t.",
    "asr": "\nASR",
    "r_acc": "\nR-Acc",
    "der": "\nDER",
    "precision": "Isol.\nprec.",
}
LINE = {"c_acc": "C-Acc", "asr": "ASR", "r_acc": "R-Acc"}
FOUND = {"precision": "precision", "recall": "recall", "fpr": "FPR", "auroc": "AUROC"}


class StageProgress(pl.Callback):
    """One bar for a whole fit: name, epoch, steps, loss, images a second, time left. It vanishes at the end.

    It keeps quiet off rank zero, with CI=true, where the output is no terminal, and if `progress` is False.
    Give the Trainer `enable_progress_bar=False`, else Lightning adds its own bars.

    Args:
        name: the stage.
        progress: False shows nothing.
        console: where to draw; the standard output if None.
    """

    def __init__(self, name: str, progress: bool = True, console: Console | None = None) -> None:
        self.name, self.progress, self.console = name, progress, console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._drawn = self._since = self._paused = 0.0
        self._images = self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar, at the step from which a resumed fit goes on."""
        # Made only now: a console holds a lock, and callbacks are pickled for some launchers.
        console = self.console or Console()
        in_ci = os.environ.get("CI", "").lower() in ("true", "1")
        if not self.progress or in_ci or not console.is_terminal or not trainer.is_global_zero:
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
        )
        total, length = total_batches(trainer), trainer.num_training_batches
        # A loader of unknown length has infinitely many batches.
        done = trainer.current_epoch * int(length) if length != float("inf") else 0
        self._task = self._bar.add_task(self.name, total=total, completed=done, state="")
        self._steps, self._images, self._since, self._drawn = done, 0, time.perf_counter(), 0.0
        self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch and redraw from time to time."""
        if self._bar is None:
            return
        self._steps += 1
        self._images += extract_batch_size(batch) * trainer.world_size
        now = time.perf_counter()
        if now - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = now
        speed = self._images / max(now - self._since, 1e-9)
        self._bar.update(
            self._task,
            completed=self._steps,
            state=_state(trainer, self._steps, _loss(trainer, outputs), speed),
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of the images a second."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start it again."""
        self._since += time.perf_counter() - self._paused

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar before the error is shown."""
        self._close()

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()


def total_batches(trainer: pl.Trainer) -> int | None:
    """Batches of the whole fit, by `max_epochs` and `max_steps`; None if neither bounds it."""
    bounds = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        bounds.append(trainer.max_epochs * trainer.num_training_batches)
    if trainer.max_steps >= 0:
        bounds.append(trainer.max_steps * trainer.accumulate_grad_batches)
    total = min(bounds, default=float("inf"))
    return int(total) if total != float("inf") else None


@rank_zero_only
def stage_line(
    name: str,
    metrics: Mapping[str, Any],
    seconds: float,
    note: str = "",
    console: Console | None = None,
) -> None:
    """Print one line for a finished stage, for instance `victim  C-Acc 91.2 %  ASR 100.0 %  12.3 s  trained`.

    Args:
        name: the stage.
        metrics: fractions by `c_acc`, `asr`, `r_acc`; without them, what is known of `detection`, and the `findings`.
        seconds: wall time of the stage.
        note: said at the end of the line.
        console: where to print; the standard output if None.
    """
    parts = [f"{name:<12}"]
    several = {key: f"ASR {key.removeprefix('asr/')}" for key in metrics if key.startswith("asr/")}
    parts += [f"{title} {_percent(metrics[key]):>5} %" for key, title in (LINE | several).items() if key in metrics]
    found = metrics.get("detection", {})
    if not any(key in metrics for key in LINE):  # a pure detector
        parts += [f"flagged {found['flagged']:,}"] if "flagged" in found else []
        parts += [f"{title} {_percent(found[key])} %" for key, title in FOUND.items() if key in found]
        parts += _numbers(metrics.get("findings", {}))
    parts += [f"{seconds:.1f} s", note]
    line = "  ".join(part for part in parts if part)
    (console or Console()).print(line, soft_wrap=True, markup=False, highlight=False)


@rank_zero_only
def crafted_line(
    name: str, findings: Mapping[str, Any], seconds: float, *, hit: bool, console: Console | None = None
) -> None:
    """Print one line for a stage of the attack, with the numbers that it found."""
    parts = [f"{name:<12}", "(attacker)", *_numbers(findings), f"{seconds:.1f} s", "from the store" if hit else ""]
    line = "  ".join(part for part in parts if part)
    (console or Console()).print(line, soft_wrap=True, markup=False, highlight=False)


@rank_zero_only
def closing_table(result: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print stage x metric in percent, a dash for what cannot be known, and the run's folder below.

    Args:
        result: the content of result.json; stages with a true `control` are dimmed and marked.
        folder: the run's folder.
        console: where to print; the standard output if None. 80 columns are
            enough, and a pipe gets plain text.
    """
    screen = console or Console()
    stages = result.get("stages", ())
    several = dict.fromkeys(key for stage in stages for key in stage if key.startswith("asr/"))
    more = {key: f"ASR\n{key.removeprefix('asr/')}" for key in several} | (
        {"asr_worst": "ASR\nworst"} if several else {}
    )
    table = Table(box=box.SIMPLE_HEAD, title="Results in percent", title_justify="left", pad_edge=False)
    table.padding = (0, 0) if several else (0, 1)  # 80 columns
    table.add_column("\nStage", overflow="fold", min_width=8)
    for title in (*COLUMNS.values(), "\nSeconds", *(escape(title) for title in more.values())):
        table.add_column(title, justify="right", no_wrap=True)
    for stage in stages:
        control = bool(stage.get("control"))
        seen = {**stage, "precision": stage.get("detection", {}).get("precision")}
        cells = [_percent(seen.get(key)) for key in COLUMNS]
        seconds = stage.get("seconds")
        last = "-" if seconds is None else f"{seconds:.1f}"
        others = [_percent(stage.get(key)) for key in more]
        table.add_row(escape(shown_name(stage)), *cells, last, *others, style="dim" if control else None)
    screen.print(table)
    screen.print(Text(f"Folder: {_short(folder)}"), soft_wrap=True)


def _numbers(findings: Mapping[str, Any]) -> list[str]:
    return [f"{key} {value:.4g}" for key, value in findings.items() if isinstance(value, int | float)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _short(folder: Path) -> Path:
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) and folder != here else folder


def _loss(trainer: pl.Trainer, outputs: Any) -> float | None:
    found = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if found is None:
        found = trainer.callback_metrics.get("loss")
    return None if found is None else float(found)


def _state(trainer: pl.Trainer, steps: int, loss: float | None, speed: float) -> str:
    bounded = trainer.max_epochs is not None and trainer.max_epochs >= 0
    total = total_batches(trainer)
    epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}" if bounded else f"{trainer.current_epoch + 1}"
    parts = [f"epoch {epoch}", f"step {steps}/{total}" if total else f"step {steps}"]
    parts += [f"loss {loss:.3f}"] if loss is not None else []
    return "  ".join([*parts, f"{speed:,.0f} img/s"])
