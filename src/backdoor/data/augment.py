"""Batched augmentation on the device where the images are, from one draw a batch.

On the CPU the windows are copied one by one: numpy slices cost less than an index of every pixel. On other
devices, where each small copy would be a kernel launch, one gather reads them through `unfold`, a view. The
draws and the result are the same. `benchmarks/augment.py` compares both with kornia and with other gathers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor.errors import UserError, suggest

Augment = Callable[[Tensor, torch.Generator], Tensor]


def make_augment(name: str) -> Augment:
    """The pipeline `none`, `flip`, `crop` or `crop_flip`.

    It takes a batch (B, C, H, W) of any dtype that numpy has and a CPU generator, and returns the same shape,
    dtype and device. Draws are per sample; the batch that came in is never written to.

    Raises:
        UserError: unknown name.
    """
    if name not in PIPELINES:
        raise UserError(f"data.augment={name}: unknown; {suggest(str(name), PIPELINES)}")
    return PIPELINES[name]


def none(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch itself; draws nothing."""
    return images


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each sample left to right with probability 1/2."""
    return mirror_(images.clone(), draw_flips(len(images), generator))


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zero padding of `padding_of(H)` pixels on each side, then a random H x W window of each sample."""
    return shift(images, draw_offsets(images, generator))


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """`crop`, then `flip`: usual for CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2)."""
    offsets = draw_offsets(images, generator)
    return mirror_(shift(images, offsets), draw_flips(len(images), generator))


def padding_of(height: int) -> int:
    """4 pixels at 32 (He et al. 2016, section 4.2), in proportion above, and 4 below."""
    return min(height, 4 * max(1, round(height / 32)))


def draw_offsets(images: Tensor, generator: torch.Generator) -> Tensor:
    """int64 (2, B): top and left corner of each window, on the CPU, uniform in [0, 2 * padding]."""
    return torch.randint(0, 2 * padding_of(images.shape[2]) + 1, (2, len(images)), generator=generator)


def draw_flips(count: int, generator: torch.Generator) -> Tensor:
    """int64: positions of the samples to mirror, on the CPU."""
    return (torch.rand(count, generator=generator) < 0.5).nonzero()[:, 0]


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """The window of each zero-padded sample whose corner is `offsets[:, b]`, as a copy."""
    return copy_windows(images, offsets) if images.device.type == "cpu" else gather_windows(images, offsets)


def gather_windows(images: Tensor, offsets: Tensor) -> Tensor:
    """`shift` in one gather."""
    height, width = images.shape[2:]
    padded = F.pad(images, (padding_of(height),) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    top, left = offsets.to(images.device, non_blocking=True)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def copy_windows(images: Tensor, offsets: Tensor) -> Tensor:
    """`shift` sample by sample; only what lies inside the image is copied."""
    height, width = images.shape[2:]
    result = torch.zeros_like(images)
    source, target = images.numpy(), result.numpy()
    for sample, (down, right) in enumerate((offsets - padding_of(height)).t().tolist()):
        rows = slice(max(0, -down), height - max(0, down))
        columns = slice(max(0, -right), width - max(0, right))
        target[sample, :, rows, columns] = source[
            sample, :, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)
        ]
    return result


def mirror_(images: Tensor, rows: Tensor) -> Tensor:
    """Mirror the given rows in place."""
    if images.device.type == "cpu":
        pixels = images.numpy()
        for row in rows.tolist():
            pixels[row] = pixels[row, :, :, ::-1].copy()
        return images
    rows = rows.to(images.device, non_blocking=True)  # row numbers, unlike a mask, need no wait for the device
    images[rows] = images[rows].flip(3)
    return images


PIPELINES: dict[str, Augment] = {"none": none, "flip": flip, "crop": crop, "crop_flip": crop_flip}
