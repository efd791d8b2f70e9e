"""D-BR's repair: unlearn the suspect rows, relearn the trusted ones, epoch after epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor.data.loader import Batch
from backdoor.modules import StageModule


class UnlearnRelearn(StageModule):
    """Ascent on batches of suspect rows, descent on batches of trusted ones.

    The fit goes through the suspect rows and then through the trusted ones in each epoch (`rows: [suspect, trusted]`),
    with one optimiser for both, as the authors' code does. BatchNorm is in train mode.
    """

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.register_buffer("suspect", self.state.groups["suspect"].clone(), persistent=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Plus or minus the mean cross-entropy of the batch, a scalar."""
        logits = self(batch.images)
        suspect: Tensor = self.suspect[batch.rows[0]]  # type: ignore[index]  # no batch holds both
        sign = torch.where(suspect, -1.0, 1.0)
        loss = sign * F.cross_entropy(logits, batch.labels)
        self.log_batch(loss, logits, batch)
        return loss
