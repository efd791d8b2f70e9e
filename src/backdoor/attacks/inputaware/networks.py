"""The two networks of Input-aware: an encoder-decoder that paints patterns, and one that says where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor.data.loader import mix
from backdoor.state import Split

LEVELS = 3  # poolings: 1/8 of the side remains in the middle
LEAST_SIDE = 2**LEVELS


class Generator(nn.Module):
    """Encoder-decoder without skips, images in [0, 1] -> values in [0, 1] at each pixel.

    Input-aware (Nguyen and Tran, NeurIPS 2020) and BackdoorBench: three times two 3x3 conv-BN-ReLU and
    a 2x2 max-pooling, channels from `width` doubling; one block in the middle; three times an upsampling to the size
    before the pooling and two blocks, the last without ReLU; then tanh / 2 + 1/2. BatchNorm's momentum is 0.05.

    It computes in float32 under any autocast: its sharpened output would show bf16's rounding, and the trigger after
    training is to be the one that was trained.

    Args:
        channels: of the images.
        out: of what is painted: `channels` for patterns, 1 for masks.
        width: channels of the first stage; 32 as published.
        mean, std: float (C,) or (C, 1, 1), of the images; they are normalised inside, as the published networks get
            them normalised.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, channels: int, out: int, width: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone().float().view(-1, 1, 1))
        self.register_buffer("std", std.detach().clone().float().view(-1, 1, 1))
        widths = [width * 2**level for level in range(LEVELS)]
        before = [channels, *widths]
        self.encoder = nn.ModuleList(
            nn.Sequential(*block(before[level], widths[level]), *block(widths[level], widths[level]))
            for level in range(LEVELS)
        )
        self.middle = nn.Sequential(*block(widths[-1], widths[-1]))
        after = [*reversed(widths[:-1]), out]
        self.decoder = nn.ModuleList(
            nn.Sequential(
                *block(wide, wide),
                *block(wide, narrow, relu=level < LEVELS - 1),
            )
            for level, (wide, narrow) in enumerate(zip(reversed(widths), after, strict=True))
        )

    def forward(self, images: Tensor) -> Tensor:
        """float [0, 1] (B, C, H, W) -> float32 [0, 1] (B, out, H, W)."""
        with torch.autocast(images.device.type, enabled=False):
            x = self.normalised(images.float())
            sizes = []
            for stage in self.encoder:
                x = stage(x)
                sizes.append(x.shape[2:])
                x = F.max_pool2d(x, 2)
            x = self.middle(x)
            for stage in self.decoder:
                x = stage(F.interpolate(x, size=sizes.pop(), mode="bilinear", align_corners=False))
            return x.tanh() / 2 + 0.5

    def normalised(self, images: Tensor) -> Tensor:
        """(images - mean) / std."""
        return (images - self.mean) / self.std

    @classmethod
    def fresh(cls, split: Split, *, out: int, width: int, seed: int) -> Self:
        """An untrained network for the images of `split`, the same for the same seed."""
        mean, std = statistics(split.images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, 0x1AB, out))
            return cls(channels=split.images.shape[1], out=out, width=width, mean=mean, std=std)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The trained network of a state_dict, whose shapes tell its sizes; in eval mode, without gradients."""
        width, channels = tensors["encoder.0.0.weight"].shape[:2]
        convolutions = [value for name, value in tensors.items() if name.startswith("decoder.") and value.ndim == 4]
        made = cls(
            channels=channels,
            out=len(convolutions[-1]),
            width=width,
            mean=tensors["mean"],
            std=tensors["std"],
        )
        made.load_state_dict(dict(tensors))
        return made.eval().requires_grad_(False)


def block(channels: int, out: int, *, relu: bool = True) -> list[nn.Module]:
    """3x3 convolution, BatchNorm, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out, momentum=0.05)]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


def statistics(images: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 (N, C, H, W): float32 (C,), in [0, 1]; std >= 1/255."""
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = total.clone()
    for some in images.split(chunk):
        levels = some.float().div(255)
        total += levels.sum((0, 2, 3), dtype=torch.float64).cpu()
        squares += levels.square().sum((0, 2, 3), dtype=torch.float64).cpu()
    count = images[:, 0].numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), std.clamp(min=1 / 255).float()
