"""Training that pushes the classes' centres apart, so that poisoned rows leave their class."""

from __future__ import annotations

from torch import Tensor

from backdoor.data.loader import Batch
from backdoor.defenses.fct.method import centre_similarity
from backdoor.errors import UserError
from backdoor.models.base import ImageClassifier
from backdoor.training import StageModule


class CentreSpreading(StageModule):
    """Minimises the mean cosine of the class centres alone, without cross-entropy (SD, step 2)."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar. One forward pass: features, and from them the logits that the accuracy is logged of."""
        if not isinstance(self.model, ImageClassifier):
            raise UserError(f"expected a model with features and a linear head, got {type(self.model).__name__}")
        features = self.model.features(batch.images)
        loss = centre_similarity(self.whole(features.float()), self.whole(batch.labels), self.state.num_classes)
        self.log_batch(loss, self.model.head(features), batch)
        return loss
