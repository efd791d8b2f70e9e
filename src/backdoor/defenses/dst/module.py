"""D-ST's training modules: a contrastive extractor, and a linear head that unlearns a little."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.checking.ranges import NotNegative, Positive, Share
from backdoor.data.loader import Batch
from backdoor.defenses.dst.method import semi_contrastive_loss
from backdoor.errors import UserError
from backdoor.training import StageModule, masked_mean
from backdoor.training.contrast import ContrastModule, check_temperature, extractor_of
from backdoor.training.views import Views


class SemiContrastive(ContrastModule):
    """Trains the features by `semi_contrastive_loss` on two views of each image.

    Args:
        temperature, base_temperature, positives: see `semi_contrastive_loss`.
    """

    def __init__(
        self,
        *,
        temperature: Positive = 0.1,
        base_temperature: Positive = 0.07,
        positives: str = "same_label_any",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_temperature("temperature", temperature)
        check_temperature("base_temperature", base_temperature)
        self.options = {"temperature": temperature, "base_temperature": base_temperature, "positives": positives}
        semi_contrastive_loss(torch.zeros(2, 1, 1), torch.zeros(1), torch.ones(1).bool(), **self.options)  # type: ignore[arg-type]
        self.register_buffer("clean", self.state.groups["trusted"].clone(), persistent=False)

    def contrast(self, found: Tensor, batch: Batch) -> Tensor:
        """A scalar."""
        clean: Tensor = self.clean[batch.rows]  # type: ignore[index]
        return semi_contrastive_loss(found, batch.labels, clean, **self.options)  # type: ignore[arg-type]


class MixedHead(StageModule):
    """Trains the head alone, on fixed features: descent on trusted rows, a little ascent on suspect ones.

    L = CE(trusted rows of the batch) - weight * CE(its suspect rows); an empty part counts 0.

    Args:
        weight: of the ascent; 0.001 in the authors' code.
        views: settings of `Views`; one view of each image.
    """

    def __init__(self, *, weight: NotNegative = 0.001, views: Mapping[str, Share] | None = None, **common: Any) -> None:
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
        losses = self.whole(F.cross_entropy(logits, batch.labels, reduction="none"))
        suspect: Tensor = self.suspect[self.whole(batch.rows)]  # type: ignore[index]
        loss = masked_mean(losses, ~suspect) - self.weight * masked_mean(losses, suspect)
        self.log_batch(loss, logits, batch)
        return loss
