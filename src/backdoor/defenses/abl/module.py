"""ABL's training modules: the floored loss, gradient ascent, and both at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor.checking.ranges import NotNegative, Positive
from backdoor.data.loader import Batch
from backdoor.defenses.abl.method import signed_floor
from backdoor.errors import UserError
from backdoor.training import BN_MODES, Classifier, StageModule, check_bn_mode, freeze_batch_norm, masked_mean


class LocalGradientAscent(Classifier):
    """Training whose loss is kept from falling below a floor, so that only the easiest rows stay below it.

    Args:
        level: the floor; gamma = 0.5 in the paper.
        form, reduction: see `signed_floor`.
    """

    def __init__(self, *, level: NotNegative = 0.5, form: str = "lga", reduction: str = "batch", **common: Any) -> None:
        super().__init__(**common)
        if level < 0:
            raise UserError(f"level={level}: expected a loss of at least 0, for instance 0.5")
        self.options = {"level": level, "form": form, "reduction": reduction}
        signed_floor(torch.ones(1), **self.options)  # type: ignore[arg-type]  # refuses an unknown choice now

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The floored cross-entropy, a scalar."""
        losses = self.whole(F.cross_entropy(logits, batch.labels, reduction="none"))
        return signed_floor(losses, **self.options)  # type: ignore[arg-type]


class GradientAscent(StageModule):
    """Unlearning: maximise the cross-entropy of the isolated rows (ABL, section 3).

    Args:
        bn_mode: `train` lets BatchNorm use and update batch statistics, as the authors' code does, and most of the
            effect comes from that; `frozen` leaves it in eval mode (the saturated loss then has no gradient);
            `stats_only` moves the statistics and no weight (the lr = 0 control).
    """

    def __init__(self, *, bn_mode: str = "train", **common: Any) -> None:
        super().__init__(**common)
        self.bn_mode = check_bn_mode(bn_mode, (*BN_MODES, "stats_only"))
        if bn_mode == "stats_only":
            self.lr = 0.0

    def on_train_epoch_start(self) -> None:
        """BatchNorm leaves train mode again if it is frozen."""
        if self.bn_mode == "frozen":
            freeze_batch_norm(self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Minus the mean cross-entropy, a scalar."""
        logits = self(batch.images)
        loss = -F.cross_entropy(logits, batch.labels)
        self.log_batch(loss, logits, batch)
        return loss


class JointAscent(StageModule):
    """The paper's formulation: descent on the kept rows and ascent on the isolated ones in the same step.

    Batches are drawn from all rows, so that BatchNorm sees the data's own mixture. The loss is
    E_kept[CE] - weight * E_isolated[min(CE, ceiling)], each mean taken inside the batch.

    Args:
        weight: of the ascent term; 1 in the paper.
        ceiling: the cross-entropy, in nats, above which an isolated row is no longer unlearnt. None goes on without an
            end, as the paper writes it: the ascent then outgrows the descent and destroys the model.
    """

    def __init__(self, *, weight: NotNegative = 1.0, ceiling: Positive | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.weight, self.ceiling = weight, ceiling
        self.register_buffer("suspect", self.state.groups["suspect"].clone(), persistent=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar."""
        logits = self(batch.images)
        losses = self.whole(F.cross_entropy(logits, batch.labels, reduction="none"))
        suspect: Tensor = self.suspect[self.whole(batch.rows)]  # type: ignore[index]
        unlearnt = losses if self.ceiling is None else losses.clamp(max=self.ceiling)
        loss = masked_mean(losses, ~suspect) - self.weight * masked_mean(unlearnt, suspect)
        self.log_batch(loss, logits, batch)
        return loss
