"""SSBA: networks that write a secret into an image and read it back, and the loss that trains both.

Sources: Li et al., "Invisible backdoor attack with sample-specific triggers" (ICCV 2021, arXiv 2012.03816); the
networks are written anew after the description of Tancik, Mildenhall, Ng, "StegaStamp" (CVPR 2020, arXiv 1904.05343).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.checking.ranges import Count
from backdoor.data.loader import mix
from backdoor.triggers.base import Shape

PLANE = 16  # side of the picture that the secret becomes before it is stretched over the image (the card)


class Encoder(nn.Module):
    """A U-Net that turns an image and a secret into a residual which carries the secret.

    Fully convolutional, so it takes images of any size: the residual is computed on the image with its borders
    repeated up to a multiple of 2 ** (number of halvings), and cut back. No layer has batch statistics.

    Args:
        shape: (C, H, W) of the images that it is trained for, kept in the weights.
        bits: length n of the secret.
        widths: channels at full, half, quarter ... resolution, at least two; (32, 32, 64, 128, 256) in StegaStamp.

    Raises:
        ValueError: fewer than two widths.
    """

    shape: Tensor

    def __init__(self, shape: Shape, *, bits: Count, widths: Sequence[Count]) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"encoder.widths={list(widths)}: expected at least two, one a resolution")
        channels = shape[0]
        self.register_buffer("shape", torch.tensor(shape, dtype=torch.int64))
        self.secret = nn.Linear(bits, PLANE * PLANE * channels)
        self.first = conv(2 * channels, widths[0])
        self.down = nn.ModuleList(conv(fine, coarse, stride=2) for fine, coarse in pairwise(widths))
        upward = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(conv(coarse, fine) for coarse, fine in upward)
        extra = [*[0] * (len(upward) - 1), 2 * channels]  # the last level sees image and secret once more
        self.join = nn.ModuleList(conv(2 * fine + more, fine) for (_, fine), more in zip(upward, extra, strict=True))
        self.last = conv(widths[0], widths[0])
        self.residual = nn.Conv2d(widths[0], channels, 1)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Encoder:
        """The encoder that these weights belong to; its settings are read off their shapes."""
        channels, height, width = weights["shape"].tolist()
        depth = sum(name.startswith("down.") and name.endswith("weight") for name in weights)
        widths = [len(weights["first.weight"]), *(len(weights[f"down.{level}.weight"]) for level in range(depth))]
        encoder = cls((channels, height, width), bits=weights["secret.weight"].shape[1], widths=widths)
        encoder.load_state_dict(weights)
        return encoder

    def forward(self, images: Tensor, secret: Tensor) -> Tensor:
        """The residual, float (B, C, H, W) on the images' scale, not clamped.

        Args:
            images: float (B, C, H, W) in [0, 1].
            secret: float (B, n) of zeros and ones.
        """
        size = images.shape[2:]
        bottom, right = (-side % 2 ** len(self.down) for side in size)
        plane = self.secret(secret - 0.5).unflatten(1, (-1, PLANE, PLANE))
        x = torch.cat([images - 0.5, F.interpolate(plane, size)], dim=1)
        x = inputs = F.pad(x, (0, right, 0, bottom), mode="replicate")
        x = F.relu(self.first(x))
        skips = []
        for down in self.down:
            skips.append(x)
            x = F.relu(down(x))
        for up, join in zip(self.up, self.join, strict=True):
            skip = skips.pop()
            x = F.relu(up(F.interpolate(x, scale_factor=2)))
            x = torch.cat([skip, x] if skips else [skip, x, inputs], dim=1)
            x = F.relu(join(x))
        return self.residual(F.relu(self.last(x)))[:, :, : size[0], : size[1]]


class Decoder(nn.Module):
    """Strided convolutions and two linear layers that read the secret.

    Args:
        shape: (C, H, W) of the images.
        bits: length n of the secret.
        widths: channels of the convolutions.
        strides: of each; seven with five halvings in StegaStamp.
        hidden: units between the linear layers; 512 in StegaStamp.

    Raises:
        ValueError: not as many strides as widths.
    """

    def __init__(
        self, shape: Shape, *, bits: Count, widths: Sequence[Count], strides: Sequence[Count], hidden: Count
    ) -> None:
        super().__init__()
        if len(strides) != len(widths) or not widths:
            raise ValueError(f"decoder.strides={list(strides)}: expected one for each of {len(widths)} widths")
        channels, height, width = shape
        for stride in strides:
            height, width = -(-height // stride), -(-width // stride)
        layers: list[nn.Module] = []
        for (before, after), stride in zip(pairwise([channels, *widths]), strides, strict=True):
            layers += [conv(before, after, stride), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * height * width, hidden), nn.ReLU(), nn.Linear(hidden, bits)
        )

    def forward(self, images: Tensor) -> Tensor:
        """float (B, C, H, W) in [0, 1] -> logits of the bits (B, n)."""
        return self.head(self.features(images - 0.5))


def conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution in front of a ReLU, with He et al.'s initial weights."""
    layer = nn.Conv2d(before, after, 3, stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Steganographer(nn.Module):
    """Encoder and decoder, trained together."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor, secret: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] and secrets (B, n) -> residual (B, C, H, W), logits read back (B, n)."""
        residual = self.encoder(images, secret)
        return residual, self.decoder((images + residual).clamp(0, 1))


class Losses(NamedTuple):
    """Scalars: binary cross-entropy of the bits, mean squared residual, share of bits read rightly."""

    message: Tensor
    image: Tensor
    accuracy: Tensor


def losses(residual: Tensor, logits: Tensor, secret: Tensor) -> Losses:
    """What training minimises, and the accuracy that starts the image loss.

    The image loss is on the residual before clamping: a pixel that is pushed far outside [0, 1] has no other way back.
    """
    return Losses(
        F.binary_cross_entropy_with_logits(logits.float(), secret),
        residual.float().square().mean(),
        bit_accuracy(logits, secret).mean(),
    )


def bit_accuracy(logits: Tensor, secret: Tensor) -> Tensor:
    """float (B,): share of the n bits of each secret (B, n) that the logits (B, n) give."""
    return logits.gt(0).eq(secret > 0.5).float().mean(1)


def image_weight(since: int, weight: float, delay: int, ramp: int) -> float:
    """Weight of the image loss: 0 until `delay` steps after the message could be read, then up in `ramp` steps.

    Args:
        since: steps since the bit accuracy first passed its threshold; negative: not yet.
    """
    return 0.0 if since < 0 else weight * min(1.0, max(0.0, (since - delay) / ramp))


def draw_secrets(count: int, bits: Count, generator: torch.Generator) -> Tensor:
    """float32 (count, n) of zeros and ones, on the CPU."""
    return torch.randint(0, 2, (count, bits), generator=generator).float()


def secret_of(seed: int, bits: Count) -> Tensor:
    """s*, the one secret of a run: float32 (n,) of zeros and ones."""
    return draw_secrets(1, bits, torch.Generator().manual_seed(mix(seed, 0x55BA)))[0]
