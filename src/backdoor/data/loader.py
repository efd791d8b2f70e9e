"""Batches straight from one array on the device: an index gather and batched augmentation, no workers, no PIL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from backdoor.state import Split

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: float32 (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        rows: int64 (B,), positions in the split.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


class Chooses:
    """A module that chooses its batches itself, epoch by epoch.

    Attributes:
        steps: batches of an epoch.
        parts: into how many parts of equal size a batch falls; each rank takes its share of each.
    """

    steps: int
    parts: int

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """int64 (B,): the rows of each batch; a row may come more than once and is then augmented each time."""
        raise NotImplementedError


def to_float(images: Tensor, *, channels_last: bool = False) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(torch.float32, memory_format=layout).div_(255)


class ResidentLoader:
    """One epoch over the `rows` of a split, in an order given by (seed, epoch) alone.

    So a killed run that goes on at epoch e sees the batches that an undisturbed one would see. Each rank of a
    distributed job takes every world-size-th position of the same global order, so that their batches together are
    those of one process with a batch world-size times as large; all ranks get equally many (rows left over are dropped
    with `drop_last`, else repeated from the start, as DistributedSampler does).

    Args:
        batch_size: of this rank.
        split: images may live on any device; what is yielded lies on `device`.
        rows: int64 positions to use; all if None. Several are gone through one after the other in each epoch, and no
            batch holds rows of two of them.
        augment: batched augmentation on uint8 images, given a seeded CPU generator.
        chooser: names the rows of each batch in place of `rows`, `batch_size` and `shuffle`.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device,
        rows: Tensor | Sequence[Tensor] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        augment: Augment | None = None,
        seed: int = 0,
        epoch: int = 0,
        channels_last: bool = False,
        rank: int = 0,
        world: int = 1,
        chooser: Chooses | None = None,
    ) -> None:
        self.chooser = chooser
        self.split, self.batch_size, self.device = split, batch_size, device
        everything = torch.arange(len(split)) if rows is None else rows
        self.parts = [everything] if isinstance(everything, Tensor) else list(everything)
        self.shuffle, self.augment = shuffle, augment
        self.seed, self.epoch, self.channels_last = seed, epoch, channels_last
        self.rank, self.world = rank, world
        self.drop_last = drop_last

    def __len__(self) -> int:
        if self.chooser is not None:
            return self.chooser.steps
        return sum(self.batches(len(part)) for part in self.parts)

    def batches(self, count: int) -> int:
        """How many batches of each rank `count` rows make."""
        # Fewer rows than one batch still give one step.
        if self.drop_last and count >= self.batch_size * self.world:
            return count // (self.batch_size * self.world)
        return -(-count // (self.batch_size * self.world))

    def order(self) -> Iterator[Tensor]:
        """This rank's rows of this epoch, a batch at a time: int64 (B,)."""
        if self.chooser is not None:
            for batch in self.chooser.batches(self.epoch):
                yield torch.cat([self.shared(part) for part in batch.chunk(self.chooser.parts)])
            return
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, 0))
        for part in self.parts:
            rows = part[torch.randperm(len(part), generator=generator)] if self.shuffle else part
            full = self.drop_last and len(part) >= self.batch_size * self.world
            mine = rows[self.rank :: self.world] if full else self.shared(rows)
            yield from mine.split(self.batch_size)[: self.batches(len(part))]

    def shared(self, rows: Tensor) -> Tensor:
        """This rank's share of `rows`, as many as any other rank's: the first ones come again if need be."""
        places = torch.arange(self.rank, self.world * -(-len(rows) // self.world), self.world)
        return rows[places % len(rows)]

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, 1 + self.rank))
        for rows in self.order():
            where = rows.to(self.split.images.device)
            images = self.split.images.index_select(0, where).to(self.device, non_blocking=True)
            if self.augment is not None:
                images = self.augment(images, generator)
            labels = self.split.labels[rows].to(self.device, non_blocking=True)
            yield Batch(to_float(images, channels_last=self.channels_last), labels, rows.to(self.device))


def mix(*parts: int) -> int:
    """A seed in [0, 2**63) from several integers; other parts give an unrelated stream."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
