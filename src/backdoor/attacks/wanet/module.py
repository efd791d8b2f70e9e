"""WaNet's training: some rows of each batch are warped and get the target label, some jittered with their true one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor.attacks.controlled import count_of, cover_group, epoch_generator
from backdoor.attacks.plan import PoisonGroup
from backdoor.checking.ranges import NotNegative, Seed
from backdoor.data.augment import make_augment
from backdoor.data.loader import Batch
from backdoor.errors import UserError
from backdoor.training import Classifier
from backdoor.triggers import Warp

FRESH = 2**32  # seeds of the noise: one for each row of each step


def noise_group(poison: PoisonGroup, *, cross_ratio: NotNegative = 2.0) -> PoisonGroup:
    """The rows of the fixed train set in noise mode: the same warp with jitter, true labels.

    Args:
        cross_ratio: rho, noise rows for each poisoned row; 2 in the paper.

    Raises:
        UserError: a trigger that is no warp, a label map or pool that the training cannot follow, a ratio too large.
    """
    if not isinstance(poison.trigger, Warp):
        raise UserError(
            f"attack.trigger: the noise mode of attack=wanet needs the trigger warp, got "
            f"{type(poison.trigger).__name__}; leave trigger@attack.trigger alone, or use a poison-only attack"
        )
    return cover_group(
        poison, times=cross_ratio, trigger=poison.trigger.noisy(), setting="attack.groups.noise.cross_ratio"
    )


class WaNetTraining(Classifier):
    """Cross-entropy on batches whose first rows are poisoned anew at each step (WaNet, section 3).

    Of a batch of B rows the first floor(p B) get the warp and the target label, the next floor(p B rho) the warp with
    jitter and their true label; the rest stays clean. Then the whole batch is augmented: the paper's order, which is
    why the loader of this stage augments nothing.

    Args:
        poison: its trigger, ratio p and label map.
        noise: what `noise_group` made of it: the ratio p rho, and the jittered trigger.
        seed: of the draws.
        augment: pipeline of `backdoor.data.augment`, applied to warped and clean rows alike.
        common: see `StageModule`.
    """

    def __init__(
        self, *, poison: PoisonGroup, noise: PoisonGroup, seed: Seed = 0, augment: str = "none", **common: Any
    ) -> None:
        super().__init__(**common)
        assert isinstance(poison.trigger, Warp)  # `noise_group` saw to that
        assert isinstance(noise.trigger, Warp)
        self.warp, self.noisy = poison.trigger, noise.trigger
        self.ratio, self.noise_ratio = poison.ratio, noise.ratio
        self.label_map, self.seed = poison.label_map, seed
        self.augment = make_augment(augment)
        self.draws = epoch_generator(seed, 0)

    def on_train_epoch_start(self) -> None:
        """Seed this epoch's draws."""
        self.draws = epoch_generator(self.seed, self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the changed batch, a scalar."""
        changed = self.changed(batch)
        images = self.augment(changed.images, self.draws)
        logits = self(images)
        loss = F.cross_entropy(logits, changed.labels)
        self.log_batch(loss, logits, changed)
        return loss

    def changed(self, batch: Batch) -> Batch:
        """The batch with its first rows warped, and the next ones warped and jittered; a copy."""
        images, labels = batch.images.clone(), batch.labels.clone()
        size = len(labels)
        poisoned = count_of(self.ratio * size, self.draws)
        noisy = min(count_of(self.noise_ratio * size, self.draws), size - poisoned)
        end = poisoned + noisy
        images[:poisoned] = self.warp(images[:poisoned])
        images[poisoned:end] = self.cover(images[poisoned:end], torch.randint(FRESH, (noisy,), generator=self.draws))
        labels[:poisoned] = self.label_map.poisoned(labels[:poisoned], self.state.num_classes)
        return batch._replace(images=images, labels=labels)

    def cover(self, images: Tensor, rows: Tensor) -> Tensor:
        """Noise mode: float [0, 1] (B, C, H, W); the jitter of each is drawn from `rows` int64 (B,)."""
        return self.noisy(images, rows)
