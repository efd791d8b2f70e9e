"""What keeps pruned weights pruned while the rest is fine-tuned."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from backdoor.defenses.fp.unit import zero_pruned
from backdoor.state import State


class KeepPruned(pl.Callback):
    """Sets pruned weights to 0 again after every optimiser step; reads the finding `kept_channels`."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Undo what gradient, momentum and BatchNorm's shift did to them in this step."""
        state: State = pl_module.state  # type: ignore[assignment]
        zero_pruned(pl_module.model, state.findings["kept_channels"])  # type: ignore[arg-type]
