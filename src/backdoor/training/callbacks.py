"""Callbacks of every fit: seeding, history, resume points."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from backdoor.data.loader import mix
from backdoor.errors import UserError
from backdoor.store.intact import clear, reason, set_aside
from backdoor.store.ranks import rank, share, world
from backdoor.training.observing import epoch_ended, epoch_resumed
from backdoor.training.resume_point import check_resume_point


class SeedEpochs(pl.Callback):
    """Seed the global generators (dropout, stochastic depth) from (seed, epoch), so that a resumed fit draws alike."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed this epoch."""
        torch.manual_seed(mix(self.seed, trainer.current_epoch, 0x5EED + trainer.global_rank))


class OwnSignals(pl.Callback):
    """SIGTERM stays with whoever handles it.

    Lightning's handler would end the fit at the next batch with exit status 0, and with it a Slurm job that only waits
    to be queued again.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the handler back."""
        if threading.current_thread() is threading.main_thread() and self.handler is not None:
            signal.signal(signal.SIGTERM, self.handler)


class SharedStatistics(pl.Callback):
    """Average BatchNorm's running statistics over the ranks at the end of an epoch, each of which saw its share.

    Evaluation is sharded, so the ranks' models must be one; this callback has to come before those that measure.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Average them."""
        if world() == 1:
            return
        for part in pl_module.modules():
            if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
                for statistic in (part.running_mean, part.running_var):
                    torch.distributed.all_reduce(statistic)
                    statistic /= world()


class History(pl.Callback):
    """One row an epoch: loss and accuracy on train rows, rate, seconds. `observing` hears what it says.

    Rows travel with resume points, so that a resumed fit ends with the whole history.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.rows: list[dict[str, Any]] = []
        self.started = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the row; stop with a clear error if the loss is no number."""
        logged = trainer.callback_metrics.items()
        metrics = {name.removeprefix("train/"): float(value) for name, value in logged if name.startswith("train/")}
        loss = metrics.get("loss", 0.0)
        if not math.isfinite(loss):
            raise UserError(
                f"stage {self.stage}: the loss became {loss} in epoch {trainer.current_epoch + 1}; lower its lr, "
                "or set trainer.precision=fp32"
            )
        row: dict[str, Any] = {"stage": self.stage, "epoch": trainer.current_epoch + 1, **metrics}
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["seconds"] = round(time.perf_counter() - self.started, 3)
        self.rows.append(row)
        epoch_ended(dict(row), pl_module.model)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Rows so far, plain values."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the killed fit."""
        self.rows = list(state_dict["rows"])
        for row in self.rows:
            epoch_resumed(dict(row))


class Resume(pl.Callback):
    """A resume point at the end of an epoch, at most every `every_s` seconds, replaced atomically.

    The file is read back with `weights_only=True`: plain tensors and values, no pickled code.
    """

    def __init__(self, path: Path, *, every_s: float) -> None:
        self.path, self.every_s = path, every_s
        self.last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it is time; the last epoch needs none."""
        last = trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        # All ranks save or none does, and their clocks differ.
        if last or not share(time.monotonic() - self.last >= self.every_s):
            return
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
        self.last = time.monotonic()

    def existing(self, module: pl.LightningModule, say: Callable[[str], None]) -> Path | None:
        """The resume point of an earlier, killed fit of such a module; one that is damaged is said and set aside."""
        return self.path if share(self.path.exists() and self.whole(module, say)) else None

    def whole(self, module: pl.LightningModule, say: Callable[[str], None]) -> bool:
        """Whether the file can be gone on from; rank 0's word counts, and it alone sets aside."""
        if rank() != 0:
            return True
        try:
            check_resume_point(self.path, module)
        except Exception as error:  # damaged bytes end their readers in any way
            say(f"{self.path} cannot be gone on from ({reason(error)}): set aside, and its stage starts anew")
            set_aside(self.path)
            return False
        return True

    def done(self) -> None:
        """Nothing to resume any more."""
        if rank() == 0:
            for path in (self.path, self.path.with_name(self.path.name + ".bad")):
                clear(path)
