"""D-BR's repair: unlearn the suspect rows, relearn the trusted ones, epoch after epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor.checking.ranges import Positive
from backdoor.data.loader import Batch
from backdoor.errors import UserError
from backdoor.training import StageModule, check_bn_mode, freeze_batch_norm


class UnlearnRelearn(StageModule):
    """Ascent on batches of suspect rows, descent on batches of trusted ones.

    The fit goes through the suspect rows and then through the trusted ones in each epoch (`rows: [suspect, trusted]`),
    with one optimiser for both, as the authors' code does.

    Args:
        bn_mode: `train` lets BatchNorm use and follow each batch, as in the authors' code: in its last pass of an
            epoch it then knows trusted rows alone. `frozen` leaves it as the victim has it.
        ceiling: the cross-entropy, in nats, above which a suspect row is no longer unlearnt; log K is what a guess
            among K classes has. None goes on without an end, as the authors' code does.

    Raises:
        UserError: an unknown mode; a ceiling that is not above 0.
    """

    def __init__(self, *, bn_mode: str = "train", ceiling: Positive | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.bn_mode, self.ceiling = check_bn_mode(bn_mode), ceiling
        if ceiling is not None and not (isinstance(ceiling, int | float) and ceiling > 0):
            raise UserError(f"ceiling={ceiling}: expected a cross-entropy above 0, for instance 2.3 for 10 classes")
        self.register_buffer("suspect", self.state.groups["suspect"].clone(), persistent=False)

    def on_train_epoch_start(self) -> None:
        """BatchNorm leaves train mode again if it is frozen."""
        if self.bn_mode == "frozen":
            freeze_batch_norm(self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Plus or minus the mean cross-entropy of the batch, a scalar."""
        logits = self(batch.images)
        suspect: Tensor = self.suspect[batch.rows]  # type: ignore[index]
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        unlearnt = -(losses if self.ceiling is None else losses.clamp(max=self.ceiling))
        loss = torch.where(suspect, unlearnt, losses).mean()
        self.log_batch(loss, logits, batch)
        return loss
