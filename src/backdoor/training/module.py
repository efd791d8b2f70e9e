"""What every LightningModule of a stage has: a model, the defender's state, an optimiser and a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from backdoor.checking.ranges import BelowOne, Momentum, NotNegative, Share
from backdoor.data.loader import Batch
from backdoor.errors import UserError, suggest
from backdoor.state import State
from backdoor.store.ranks import world

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine", "warm_cosine", "step", "one_cycle")


def check_schedule(name: str) -> None:
    """Raises UserError for an unknown schedule."""
    if name not in SCHEDULES:
        raise UserError(f"schedule={name}: {suggest(name, SCHEDULES)}")


def schedule_factor(
    name: str, *, steps: int, milestones: Sequence[Share], gamma: NotNegative, warmup: BelowOne
) -> Callable[[int], float]:
    """step in [0, steps] -> factor of the learning rate.

    Args:
        name: `constant`; `cosine` to 0 (Loshchilov and Hutter 2017); `warm_cosine`, the same after a linear rise over
            the share `warmup`; `step`, times `gamma` at each milestone; `one_cycle`, a linear rise over the share
            `warmup`, then a linear fall to 0 (Smith and Topin 2018).
        milestones: shares of the whole in (0, 1), so that a shortened run keeps its shape.
    """
    check_schedule(name)
    total = max(1, steps)

    def factor(step: int) -> float:
        done = min(step / total, 1.0)
        if name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if name == "warm_cosine":
            rest = (done - warmup) / (1 - warmup)
            return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * rest))
        if name == "step":
            return gamma ** sum(done >= milestone for milestone in milestones)
        if name == "one_cycle":
            return done / warmup if done < warmup else (1 - done) / (1 - warmup)
        return 1.0

    return factor


class StageModule(pl.LightningModule):
    """Base of the modules that a `Fit` stage trains; subclasses write `training_step`.

    Args:
        model: float [0, 1] images (B, C, H, W) -> logits (B, K).
        state: all that the defender knows.
        optimizer: `sgd`, or `adam` (Kingma and Ba 2015), which makes no use of `momentum` and `nesterov`.
        lr, momentum, nesterov, weight_decay: the optimiser's.
        schedule, milestones, gamma, warmup: see `schedule_factor`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        state: State,
        lr: NotNegative,
        optimizer: str = "sgd",
        momentum: Momentum = 0.9,
        nesterov: bool = True,
        weight_decay: NotNegative = 0.0,
        schedule: str = "constant",
        milestones: Sequence[Share] = (0.5, 0.75),
        gamma: NotNegative = 0.1,
        warmup: BelowOne = 0.3,
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        if optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer={optimizer}: {suggest(optimizer, OPTIMIZERS)}")
        for setting, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UserError(f"{setting}={value}: expected a number of at least 0")
        self.model, self.state = model, state
        self.lr, self.weight_decay, self.optimizer = lr, weight_decay, optimizer
        self.momentum, self.nesterov = momentum, nesterov and momentum > 0
        self.schedule = schedule
        self.shape = {"milestones": milestones, "gamma": gamma, "warmup": warmup}

    def forward(self, images: Tensor) -> Tensor:
        """float [0, 1] (B, C, H, W) -> logits (B, K)."""
        return self.model(images)

    def trained(self) -> Iterable[nn.Parameter]:
        """What the optimiser moves: the model's parameters."""
        return self.model.parameters()

    def configure_optimizers(self) -> Any:
        """The optimiser, its rate moved after every step."""
        moved = [parameter for parameter in self.trained() if parameter.requires_grad]
        lr, decay = self.lr, self.weight_decay
        optimizer: Optimizer
        if self.optimizer == "adam":
            optimizer = Adam(moved, lr=lr, weight_decay=decay)
        else:
            optimizer = SGD(moved, lr=lr, weight_decay=decay, momentum=self.momentum, nesterov=self.nesterov)
        steps = int(self.trainer.estimated_stepping_batches)
        factor = schedule_factor(self.schedule, steps=steps, **self.shape)  # type: ignore[arg-type]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def whole(self, values: Tensor) -> Tensor:
        """(B, ...) of this rank -> those of the whole batch, the same on all ranks; gradients flow back.

        For a loss that is no mean of what each row gives: it then is the loss of one process with the whole batch.
        """
        if world() == 1:
            return values
        every: Tensor = self.all_gather(values, sync_grads=True).flatten(0, 1)  # type: ignore[union-attr]
        if every.requires_grad:
            every.register_hook(Tensor.contiguous)  # gloo sends the memory of a transposed gradient as it lies
        return every

    def log_batch(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        """Log `train/loss` and `train/acc`, averaged over the epoch."""
        accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        self.log_dict(
            {"train/loss": loss.detach(), "train/acc": accuracy},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch.labels),
            sync_dist=world() > 1,
        )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` (B,) where `mask` bool (B,), 0 where nothing is; no synchronisation with the device."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
