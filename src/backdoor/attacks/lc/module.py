"""Adversarial training of the surrogate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backdoor.attacks.lc.method import check_ball, pgd
from backdoor.checking.ranges import Count, Seed, SomeLevels
from backdoor.data.loader import Batch, mix
from backdoor.training import Classifier


class AdversarialClassifier(Classifier):
    """Cross-entropy on images that PGD has made hard (Madry et al. 2018, arXiv 1706.06083).

    PGD starts from a random point of the ball and runs in eval mode, so that BatchNorm's statistics come from the
    training step alone.

    Args:
        eps, step: radius of the L_inf ball and step, in levels; 8 and 2 in the paper.
        steps: 7 in the paper.
        seed: of the random starts, together with the step's number.
    """

    def __init__(
        self, *, eps: SomeLevels = 8, step: SomeLevels = 2, steps: Count = 7, seed: Seed = 0, **common: Any
    ) -> None:
        super().__init__(**common)
        check_ball(eps, step, steps)
        self.eps, self.step, self.steps, self.seed = eps / 255, step / 255, steps, seed

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the perturbed batch, a scalar."""
        return super().training_step(batch._replace(images=self.perturb(batch)), batch_idx)

    def perturb(self, batch: Batch) -> Tensor:
        """float (B, C, H, W) in [0, 1]; BatchNorm leaves train mode for as long as it takes."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.global_step, 0xAD))
        noise = torch.rand(batch.images.shape, generator=generator).to(batch.images.device)
        ball = {"eps": self.eps, "step": self.step, "steps": self.steps}
        self.model.eval()
        try:
            return pgd(self.model, batch.images, batch.labels, start=(2 * noise - 1) * self.eps, **ball)  # type: ignore[arg-type]
        finally:
            self.model.train()
