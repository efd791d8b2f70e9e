"""D-ST's training modules: a contrastive extractor, and a linear head that unlearns a little."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.data.loader import Batch, mix
from backdoor.defenses.dst.method import semi_contrastive_loss
from backdoor.errors import UserError, check_whole
from backdoor.models.base import ImageClassifier
from backdoor.modules import StageModule, masked_mean
from backdoor.modules.views import Views


def extractor_of(model: nn.Module) -> ImageClassifier:
    """The model, if it has features and a linear head; raises UserError else."""
    if not isinstance(model, ImageClassifier):
        raise UserError(f"defense=dst: expected a model with features and a linear head, got {type(model).__name__}")
    return model


class SemiContrastive(StageModule):
    """Trains the features by `semi_contrastive_loss` on two views of each image; the head is left as it is.

    Args:
        views: settings of `Views`.
        projection: width of the projection's output; a linear layer, ReLU and another linear layer lead there.
        temperature, base_temperature, positives: see `semi_contrastive_loss`.
        seed: of the projection's initial weights.
    """

    def __init__(
        self,
        *,
        views: Mapping[str, float] | None = None,
        projection: int = 128,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        positives: str = "same_label_any",
        seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_whole({"projection": projection})
        self.options = {"temperature": temperature, "base_temperature": base_temperature, "positives": positives}
        for setting in ("temperature", "base_temperature"):
            value = self.options[setting]
            if not isinstance(value, int | float) or value <= 0:
                raise UserError(f"{setting}={value}: expected a number above 0, for instance 0.1")
        semi_contrastive_loss(torch.zeros(2, 1, 1), torch.zeros(1), torch.ones(1).bool(), **self.options)  # type: ignore[arg-type]
        self.views = Views(**(views or {}))
        self.register_buffer("clean", self.state.groups["trusted"].clone(), persistent=False)
        width = extractor_of(self.model).head.in_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, 0xD57))
            self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection))
        self.projector.to(next(self.model.parameters()).device)

    def trained(self) -> Iterable[nn.Parameter]:
        """Features and projection; a head without a gradient would only decay."""
        return [*extractor_of(self.model).backbone.parameters(), *self.projector.parameters()]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar."""
        images = torch.cat([self.views(batch.images), self.views(batch.images)])
        features = extractor_of(self.model).features(images)
        found = F.normalize(self.projector(features).float(), dim=1).unflatten(0, (2, -1))
        clean: Tensor = self.clean[batch.rows]  # type: ignore[index]
        loss = semi_contrastive_loss(found, batch.labels, clean, **self.options)  # type: ignore[arg-type]
        self.log_dict({"train/loss": loss.detach()}, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss


class MixedHead(StageModule):
    """Trains the head alone, on fixed features: descent on trusted rows, a little ascent on suspect ones.

    L = CE(trusted rows of the batch) - weight * CE(its suspect rows); an empty part counts 0.

    Args:
        weight: of the ascent; 0.001 in the authors' code.
        views: settings of `Views`; one view of each image.
    """

    def __init__(self, *, weight: float = 0.001, views: Mapping[str, float] | None = None, **common: Any) -> None:
        super().__init__(**common)
        if not isinstance(weight, int | float) or weight < 0:
            raise UserError(f"weight={weight}: expected a number of at least 0, for instance 0.001")
        self.weight, self.views = weight, Views(**(views or {}))
        self.register_buffer("suspect", self.state.groups["suspect"].clone(), persistent=False)

    def trained(self) -> Iterable[nn.Parameter]:
        """The head's."""
        return extractor_of(self.model).head.parameters()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar. The extractor is in eval mode, so that BatchNorm stays as it was trained."""
        model = extractor_of(self.model)
        model.backbone.eval()
        with torch.no_grad():
            features = model.features(self.views(batch.images))
        logits = model.head(features)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        suspect: Tensor = self.suspect[batch.rows]  # type: ignore[index]
        loss = masked_mean(losses, ~suspect) - self.weight * masked_mean(losses, suspect)
        self.log_batch(loss, logits, batch)
        return loss
