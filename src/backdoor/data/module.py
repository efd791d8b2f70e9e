"""The LightningDataModule of every stage: a (poisoned) train split that stays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytorch_lightning as pl
import torch
from torch import Tensor

from backdoor.data.augment import make_augment
from backdoor.data.loader import Chooses, ResidentLoader
from backdoor.state import Split

DEVICE_SHARE = 0.5  # of the device's free memory that the images may take; above it they stay in host memory


class PoisonedDataModule(pl.LightningDataModule):
    """Serves `split`, or the `rows` of it, to a Trainer.

    Lightning asks for a new loader each epoch (`reload_dataloaders_every_n_epochs=1`), so that the epoch's number is
    an argument and no loader keeps state.

    Args:
        split: uint8 images; copied to `device` once if they fit.
        rows: int64 positions that are trained on, see `ResidentLoader`; all if None.
        batch_size: of all ranks together, rounded up to a multiple of their number.
        augment: name of a pipeline in `backdoor.data.augment`.
        chooser: names the rows of each batch, see `ResidentLoader`.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device,
        rows: Tensor | Sequence[Tensor] | None = None,
        augment: str = "none",
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        channels_last: bool = False,
        chooser: Chooses | None = None,
    ) -> None:
        super().__init__()
        self.split, self.rows = resident(split, device), rows
        self.batch_size, self.target_device = batch_size, device
        self.augment = None if augment == "none" else make_augment(augment)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.seed, self.channels_last, self.chooser = seed, channels_last, chooser

    def train_dataloader(self) -> ResidentLoader:
        """This rank's batches of the trainer's current epoch."""
        trainer = self.trainer
        world = trainer.world_size if trainer else 1
        return ResidentLoader(
            self.split,
            batch_size=-(-self.batch_size // world),
            device=self.target_device,
            rows=self.rows,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            augment=self.augment,
            seed=self.seed,
            epoch=trainer.current_epoch if trainer else 0,
            channels_last=self.channels_last,
            rank=trainer.global_rank if trainer else 0,
            world=world,
            chooser=self.chooser,
        )


def resident(split: Split, device: torch.device) -> Split:
    """The split with its images on `device`, if they fit into the memory that is free there."""
    if device.type != "cuda":
        return split
    free, _ = torch.cuda.mem_get_info(device)
    if split.images.numel() > DEVICE_SHARE * free:
        return split
    return replace(split, images=split.images.to(device))
