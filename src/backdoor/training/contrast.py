"""What contrastive stages share: two augmented views of each image, features, a projection onto the unit sphere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.checking.ranges import Count, Seed, Share
from backdoor.data.loader import Batch, mix
from backdoor.errors import UserError, check_whole
from backdoor.models.base import ImageClassifier
from backdoor.training.module import StageModule
from backdoor.training.views import Views


def extractor_of(model: nn.Module) -> ImageClassifier:
    """The model, if it has features and a linear head; raises UserError else."""
    if not isinstance(model, ImageClassifier):
        raise UserError(f"expected a model with features and a linear head, got {type(model).__name__}")
    return model


class ContrastModule(StageModule):
    """Trains the features; the head is left as it is. Subclasses write `contrast`.

    Args:
        views: settings of `Views`.
        projection: width of the projection's output; a linear layer, BatchNorm if `normalised`, ReLU and another
            linear layer lead there.
        seed: of the projection's initial weights.
    """

    def __init__(
        self,
        *,
        views: Mapping[str, Share] | None = None,
        projection: Count = 128,
        normalised: bool = False,
        seed: Seed = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_whole({"projection": projection})
        self.views = Views(**(views or {}))
        width = extractor_of(self.model).head.in_features
        norm = [nn.BatchNorm1d(width)] if normalised else []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, 0xD57))
            self.projector = nn.Sequential(nn.Linear(width, width), *norm, nn.ReLU(), nn.Linear(width, projection))
        self.projector.to(next(self.model.parameters()).device)

    def trained(self) -> Iterable[nn.Parameter]:
        """Features and projection; a head without a gradient would only decay."""
        return [*extractor_of(self.model).backbone.parameters(), *self.projector.parameters()]

    def contrast(self, found: Tensor, batch: Batch) -> Tensor:
        """A scalar from the unit vectors float32 (2, B, projection) of two views; `batch` has their rows and labels."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar."""
        images = self.views(torch.cat([batch.images, batch.images]))
        features = extractor_of(self.model).features(images)
        found = F.normalize(self.projector(features).float(), dim=1).unflatten(0, (2, -1))
        # Every other row of the whole batch is a negative.
        every = batch._replace(labels=self.whole(batch.labels), rows=self.whole(batch.rows))
        loss = self.contrast(self.whole(found.transpose(0, 1)).transpose(0, 1), every)
        self.log_dict({"train/loss": loss.detach()}, on_step=False, on_epoch=True, batch_size=len(batch.rows))
        return loss


def check_temperature(setting: str, value: Any) -> None:
    """Raises UserError for what is no number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{setting}={value}: expected a number above 0, for instance 0.5")
