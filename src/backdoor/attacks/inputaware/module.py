"""Input-aware's two trainings: the mask network alone, then pattern network and victim together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from backdoor.attacks.controlled import count_of, epoch_generator
from backdoor.attacks.inputaware.method import density_loss, diversity_loss, pasted, sharpened
from backdoor.attacks.inputaware.networks import Generator
from backdoor.attacks.plan import PoisonGroup
from backdoor.checking.ranges import Count, NotNegative, ProperShare, Seed
from backdoor.data.loader import Batch
from backdoor.errors import UserError
from backdoor.training import StageModule
from backdoor.training.module import check_schedule, schedule_factor

BETAS = (0.5, 0.9)  # of Adam, for both networks (BackdoorBench)
LARGEST = 1 / 3  # a batch holds poisoned rows, cross rows, and as many whose triggers the cross rows get


def adam(net: nn.Module, lr: float, factor: Any) -> dict[str, Any]:
    """Adam over a network, its rate moved after every step, as Lightning wants it."""
    optimizer = Adam(net.parameters(), lr=lr, betas=BETAS)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


class MaskTraining(StageModule):
    """Train a mask network to be sparse and to differ between images (Input-aware, section 3).

    loss = lambda_norm * mean(relu(m - density)) + lambda_div * mean(d(x1, x2) / d(m1, m2)); the second image of a pair
    is half a batch away, so that one pass serves both.

    Args:
        model: the mask network (`Generator`).
        density: share of an image that its mask may cover; 0.032 as published.
        lambda_norm, lambda_div: weights; 100 and 1 as published.
        common: see `StageModule`; `lr` is Adam's.
    """

    model: Generator

    def __init__(
        self,
        *,
        density: ProperShare = 0.032,
        lambda_norm: NotNegative = 100.0,
        lambda_div: NotNegative = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not 0 < density < 1:
            raise UserError(f"density={density}: expected a share of the image between 0 and 1, for instance 0.032")
        self.density, self.lambda_norm, self.lambda_div = density, lambda_norm, lambda_div

    def configure_optimizers(self) -> Any:
        """Adam."""
        steps = int(self.trainer.estimated_stepping_batches)
        return adam(self.model, self.lr, schedule_factor(self.schedule, steps=steps, **self.shape))  # type: ignore[arg-type]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar."""
        masks = sharpened(self(batch.images))
        images = self.model.normalised(batch.images)
        half = len(images) // 2
        pairs = [(values, values.roll(half, 0)) for values in (images, masks)]
        sparse, diverse = density_loss(masks, self.density), diversity_loss(*pairs)
        loss = self.lambda_norm * sparse + self.lambda_div * diverse
        found = {"loss": loss, "density": masks.mean(), "diversity": diverse}
        logged = {f"train/{name}": value.detach() for name, value in found.items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(images))
        return loss


class InputAwareTraining(StageModule):
    """Train pattern network and victim together (Input-aware, section 3).

    Of a batch of B rows the first b = floor(p B) get their own trigger and the target label, the next b another row's
    trigger and their TRUE label (cross-trigger mode), the rest stays clean. The other row is one of the last b of the
    batch: the published code draws a second batch for that, but a shuffled batch is itself a draw of independent
    pairs, costs no second pass over the data, and is the same after a kill because the loader's order is.

    loss = cross-entropy + lambda_div * mean(d(x1, x2) / d(G(x1), G(x2))) over poisoned rows and those others, one
    backward pass for both optimisers.

    Args:
        poison: its ratio p, at most 1/3, and its label map.
        seed: of the pattern network's first weights and of the draws.
        width: channels of the pattern network's first stage; 32 as published.
        lambda_div: weight of the diversity loss; 1 as published.
        pattern_lr, pattern_schedule: Adam's for the pattern network; 0.01 and constant as published for 100 epochs.
        pattern_zero_grad: whether its gradients are zeroed before each step; in the authors' code and in
            BackdoorBench they add up over the whole training (here, until a kill: they are in no checkpoint).
        common: see `StageModule`, for the victim's SGD.

    Raises:
        UserError: a ratio above 1/3; a `pattern_zero_grad` that is neither true nor false.
    """

    def __init__(
        self,
        *,
        poison: PoisonGroup,
        seed: Seed = 0,
        width: Count = 32,
        lambda_div: NotNegative = 1.0,
        pattern_lr: NotNegative = 0.01,
        pattern_schedule: str = "constant",
        pattern_zero_grad: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if poison.ratio > LARGEST:
            raise UserError(
                f"attack.ratio={poison.ratio}: expected at most 1/3, because a batch also holds as many cross rows "
                "and rows whose triggers these get; lower it"
            )
        if not isinstance(pattern_zero_grad, bool):
            raise UserError(f"pattern_zero_grad={pattern_zero_grad}: expected true or false")
        self.automatic_optimization = False
        self.ratio, self.label_map, self.seed = poison.ratio, poison.label_map, seed
        self.lambda_div, self.pattern_lr, self.pattern_zero_grad = lambda_div, pattern_lr, pattern_zero_grad
        check_schedule(pattern_schedule)
        self.pattern_schedule = pattern_schedule
        self.draws = epoch_generator(seed, 0)
        train = self.state.train
        self.mask_net = Generator.of(self.state.findings["mask_net"])
        self.pattern_net = Generator.fresh(train, out=train.images.shape[1], width=width, seed=seed)

    def train(self, mode: bool = True) -> Self:
        """The mask network stays in eval mode: it is frozen."""
        super().train(mode)
        self.mask_net.eval()
        return self

    def configure_optimizers(self) -> Any:
        """SGD for the victim, Adam for the pattern network."""
        steps = int(self.trainer.estimated_stepping_batches)
        factor = schedule_factor(self.pattern_schedule, steps=steps, **self.shape)  # type: ignore[arg-type]
        return [super().configure_optimizers(), adam(self.pattern_net, self.pattern_lr, factor)]

    def on_train_epoch_start(self) -> None:
        """Seed this epoch's draws."""
        self.draws = epoch_generator(self.seed, self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of both networks."""
        changed, diverse = self.changed(batch)
        logits = self(changed.images)
        loss = F.cross_entropy(logits, changed.labels) + self.lambda_div * diverse
        optimizers = self.both(self.optimizers())
        for optimizer in optimizers if self.pattern_zero_grad else optimizers[:1]:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in self.both(self.lr_schedulers()):
            scheduler.step()
        self.log_batch(loss, logits, changed)
        self.log("train/diversity", diverse.detach(), on_step=False, on_epoch=True, batch_size=len(batch.labels))

    @staticmethod
    def both(parts: Any) -> Sequence[LightningOptimizer | Any]:
        """Lightning's list of two."""
        assert isinstance(parts, list)
        return parts

    def changed(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch with own triggers in its first b rows and others' in the next b, and the diversity loss."""
        images, labels = batch.images, batch.labels.clone()
        size = len(labels)
        b = min(count_of(self.ratio * size, self.draws), size // 3)
        if b == 0:
            return batch, images.new_zeros(())
        own, others = images[:b], images[size - b :]
        seen = torch.cat([own, others])
        pattern, mask = self.pattern_net(seen), sharpened(self.mask_net(seen))
        triggered = pasted(images[: 2 * b], pattern, mask)
        normalised = self.pattern_net.normalised
        pairs = [tuple(normalised(values).split(b)) for values in (seen, pattern)]
        labels[:b] = self.label_map.poisoned(labels[:b], self.state.num_classes)
        result = batch._replace(images=torch.cat([triggered, images[2 * b :]]), labels=labels)
        return result, diversity_loss(*pairs)

    def cover(self, images: Tensor, rows: Tensor) -> Tensor:
        """Cross triggers: each image (B, C, H, W) with its neighbour's trigger."""
        seen = images.roll(1, 0)
        return pasted(images, self.pattern_net(seen), sharpened(self.mask_net(seen)))
