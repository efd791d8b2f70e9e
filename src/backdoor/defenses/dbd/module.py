"""DBD's first two training modules: features by contrast without labels, and a head by symmetric cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from backdoor.checking.ranges import NotNegative, Positive
from backdoor.data.loader import Batch
from backdoor.defenses.dbd.method import contrastive_loss, symmetric_cross_entropy
from backdoor.training import StageModule, check_bn_mode
from backdoor.training.contrast import ContrastModule, check_temperature, extractor_of


class Contrast(ContrastModule):
    """SimCLR: two views of an image shall be alike, no label is read.

    Args:
        temperature, symmetric: see `contrastive_loss`.
    """

    def __init__(self, *, temperature: Positive = 0.5, symmetric: bool = False, **common: Any) -> None:
        super().__init__(normalised=True, **common)
        check_temperature("temperature", temperature)
        self.temperature, self.symmetric = temperature, symmetric

    def contrast(self, found: Tensor, batch: Batch) -> Tensor:
        """A scalar."""
        return contrastive_loss(found, temperature=self.temperature, symmetric=self.symmetric)


class SymmetricHead(StageModule):
    """Trains the head alone on the suspicious labels; a row whose label contradicts its features keeps a high loss.

    Args:
        alpha, beta: see `symmetric_cross_entropy`.
        bn_mode: `train` lets BatchNorm's statistics in the features follow the data, as in the authors' code; `frozen`
            leaves them as the contrast left them.
    """

    def __init__(
        self, *, alpha: NotNegative = 0.1, beta: NotNegative = 1.0, bn_mode: str = "train", **common: Any
    ) -> None:
        super().__init__(**common)
        self.weights, self.bn_mode = {"alpha": alpha, "beta": beta}, check_bn_mode(bn_mode)

    def trained(self) -> Iterable[nn.Parameter]:
        """The head's."""
        return extractor_of(self.model).head.parameters()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar."""
        model = extractor_of(self.model)
        model.backbone.train(self.bn_mode == "train")
        with torch.no_grad():
            features = model.features(batch.images)
        logits = model.head(features)
        loss = symmetric_cross_entropy(logits, batch.labels, **self.weights).mean()
        self.log_batch(loss, logits, batch)
        return loss
