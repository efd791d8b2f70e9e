"""Unlearning: fine-tune on trusted images, a share of them under the reversed triggers, all with their true labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backdoor.checking.ranges import SomeShare
from backdoor.data.loader import Batch
from backdoor.defenses.nc.method import stamp
from backdoor.errors import UserError
from backdoor.training import Classifier


class TriggerUnlearning(Classifier):
    """Fine-tuning that shows the reversed triggers with true labels (Wang et al. 2019, section VI-C).

    The triggers of all flagged classes take turns over the stamped rows. They are put on after augmentation, as floats.

    Args:
        ratio: share of each batch that is stamped; 0.2 in the paper and in BackdoorBench.
    """

    masks: Tensor
    patterns: Tensor

    def __init__(self, *, ratio: SomeShare = 0.2, **common: Any) -> None:
        super().__init__(**common)
        if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise UserError(f"ratio={ratio}: expected a share above 0 and up to 1, for instance 0.2")
        self.ratio = ratio
        found = self.state.findings
        flagged = list(found["flagged_classes"])
        self.register_buffer("masks", found["masks"][flagged], persistent=False)
        self.register_buffer("patterns", found["patterns"][flagged], persistent=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the partly stamped batch, a scalar."""
        images = stamp_share(batch.images, self.masks, self.patterns, self.ratio)
        return super().training_step(batch._replace(images=images), batch_idx)


def stamp_share(images: Tensor, masks: Tensor, patterns: Tensor, ratio: SomeShare) -> Tensor:
    """A copy whose first rows carry a trigger; batches are shuffled, so these are any rows.

    Args:
        images: float [0, 1] (B, C, H, W).
        masks, patterns: of F >= 1 triggers, (F, 1, H, W) and (F, C, H, W), F = 1 for all rows alike.
        ratio: share that is stamped, rounded to whole rows, one at least.
    """
    count = min(len(images), max(1, round(ratio * len(images))))
    which = torch.arange(count, device=images.device) % len(masks)
    stamped = images.clone()
    stamped[:count] = stamp(images[:count], masks[which], patterns[which])
    return stamped
