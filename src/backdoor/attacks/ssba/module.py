"""Trains SSBA's encoder and decoder together."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from backdoor.attacks.ssba.method import Steganographer, draw_secrets, image_weight, losses
from backdoor.checking.ranges import Count, CountOrNone, NotNegative, Share
from backdoor.data.loader import Batch, mix
from backdoor.errors import UserError
from backdoor.training.module import check_schedule, schedule_factor


class StegoTraining(pl.LightningModule):
    """Message loss first; the image loss is ramped in once the message can be read (the card's schedule).

    Args:
        model: encoder and decoder.
        bits: length of the secret; each image of each step gets a new one.
        seed: of those secrets, with the step.
        lr, schedule: Adam's rate and its course, see `schedule_factor`.
        image_weight: final weight of the image loss; 10 in BackdoorBench.
        start_accuracy: bit accuracy of a batch that starts the clock of the image loss; 0.9.
        delay, ramp: steps without it from then on, and steps of its linear rise; 1000 and 3000.
    """

    since: Tensor

    def __init__(
        self,
        *,
        model: Steganographer,
        bits: Count,
        seed: int,
        lr: NotNegative,
        schedule: str,
        image_weight: NotNegative,
        start_accuracy: Share,
        delay: CountOrNone,
        ramp: Count,
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        for setting, value, low in (
            ("lr", lr, 0),
            ("image_weight", image_weight, 0),
            ("start_accuracy", start_accuracy, 0),
            ("delay", delay, 0),
            ("ramp", ramp, 1),
        ):
            if not isinstance(value, int | float) or not low <= value < math.inf:
                raise UserError(f"{setting}={value}: expected a number of at least {low}")
        self.model, self.bits, self.seed = model, bits, seed
        self.lr, self.schedule = lr, schedule
        self.start_accuracy = start_accuracy
        self.image_weight, self.delay, self.ramp = image_weight, delay, ramp
        self.register_buffer("since", torch.tensor(-1))  # a buffer, so that resume points have it

    def configure_optimizers(self) -> Any:
        """Adam, its rate moved after every step."""
        optimizer = Adam(self.model.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        factor = schedule_factor(self.schedule, steps=steps, milestones=(0.5, 0.75), gamma=0.1, warmup=0.3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of message and image loss, a scalar."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.global_step, 0xB175 + self.global_rank))
        secret = draw_secrets(len(batch.images), self.bits, generator).to(batch.images.device)
        residual, logits = self.model(batch.images, secret)
        parts = losses(residual, logits, secret)
        weight = image_weight(int(self.since), self.image_weight, self.delay, self.ramp)
        accuracy = self.all_gather(parts.accuracy).mean()  # type: ignore[union-attr]  # one clock for all ranks
        if self.since >= 0 or accuracy > self.start_accuracy:
            self.since += 1
        loss = parts.message + weight * parts.image
        values: dict[str, Any] = {
            "train/loss": loss.detach(),
            "train/bit_accuracy": accuracy,
            "train/residual_mse": parts.image.detach(),
            "train/image_weight": weight,
        }
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch.images))
        return loss
