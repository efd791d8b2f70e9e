"""DBD's first two training modules: features by contrast without labels, and a head by symmetric cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.data.loader import Batch, mix
from backdoor.defenses.dbd.method import contrastive_loss, symmetric_cross_entropy
from backdoor.errors import UserError, check_whole, suggest
from backdoor.models.base import ImageClassifier
from backdoor.modules import StageModule
from backdoor.modules.views import Views

BN_MODES = ("train", "frozen")


def extractor_of(model: nn.Module) -> ImageClassifier:
    """The model, if it has features and a linear head; raises UserError else."""
    if not isinstance(model, ImageClassifier):
        raise UserError(f"defense=dbd: expected a model with features and a linear head, got {type(model).__name__}")
    return model


class Contrast(StageModule):
    """SimCLR: trains the features on two augmented views of each image, no label is read; the head is left as it is.

    Args:
        views: settings of `Views`.
        projection: width of the projection's output; linear, BatchNorm, ReLU and linear lead there.
        temperature, symmetric: see `contrastive_loss`.
        seed: of the projection's initial weights.
    """

    def __init__(
        self,
        *,
        views: Mapping[str, float] | None = None,
        projection: int = 128,
        temperature: float = 0.5,
        symmetric: bool = False,
        seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_whole({"projection": projection})
        if not isinstance(temperature, int | float) or temperature <= 0:
            raise UserError(f"temperature={temperature}: expected a number above 0, for instance 0.5")
        self.views, self.temperature, self.symmetric = Views(**(views or {})), temperature, symmetric
        width = extractor_of(self.model).head.in_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, 0xDBD))
            self.projector = nn.Sequential(
                nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, projection)
            )
        self.projector.to(next(self.model.parameters()).device)

    def trained(self) -> Iterable[nn.Parameter]:
        """Features and projection; a head without a gradient would only decay."""
        return [*extractor_of(self.model).backbone.parameters(), *self.projector.parameters()]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar."""
        images = self.views(torch.cat([batch.images, batch.images]))
        features = extractor_of(self.model).features(images)
        found = F.normalize(self.projector(features).float(), dim=1).unflatten(0, (2, -1))
        loss = contrastive_loss(found, temperature=self.temperature, symmetric=self.symmetric)
        self.log_dict({"train/loss": loss.detach()}, on_step=False, on_epoch=True, batch_size=len(batch.rows))
        return loss


class SymmetricHead(StageModule):
    """Trains the head alone on the suspicious labels; a row whose label contradicts its features keeps a high loss.

    Args:
        alpha, beta: see `symmetric_cross_entropy`.
        bn_mode: `train` lets BatchNorm's statistics in the features follow the data, as in the authors' code; `frozen`
            leaves them as the contrast left them.
    """

    def __init__(self, *, alpha: float = 0.1, beta: float = 1.0, bn_mode: str = "train", **common: Any) -> None:
        super().__init__(**common)
        if bn_mode not in BN_MODES:
            raise UserError(f"bn_mode={bn_mode}: {suggest(bn_mode, BN_MODES)}")
        self.weights, self.bn_mode = {"alpha": alpha, "beta": beta}, bn_mode

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
