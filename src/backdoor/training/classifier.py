"""Plain supervised training: victims, fine-tuning, retraining."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from backdoor.data.loader import Batch
from backdoor.training.module import StageModule


class Classifier(StageModule):
    """Cross-entropy on the labels of the train set, poisoned or not."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch, a scalar."""
        logits = self(batch.images)
        loss = self.loss(logits, batch)
        self.log_batch(loss, logits, batch)
        return loss

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Scalar; logits (B, K). Methods that change the loss alone override this."""
        return F.cross_entropy(logits, batch.labels)
