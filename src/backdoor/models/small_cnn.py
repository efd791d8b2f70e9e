"""A plain CNN for quick experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from backdoor.checking.ranges import Count, Side
from backdoor.errors import UserError
from backdoor.models.base import ImageClassifier, kaiming_conv, normalisation


def small_cnn(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    width: Count = 32,
    resize: Side | None = None,
) -> ImageClassifier:
    """Three conv-BN-ReLU-pool blocks of 1, 2 and 4 times `width` channels, then global average pooling.

    Raises:
        UserError: images under 8 pixels, which three poolings would leave nothing of; width < 1.
    """
    if (resize or image_size) < 8:
        raise UserError(f"model=small_cnn: expected 8 pixels or more, got {resize or image_size}; set model.resize")
    if width < 1:
        raise UserError(f"model.width={width}: expected at least 1")
    layers: list[nn.Module] = []
    channels = in_channels
    for factor in (1, 2, 4):
        layers += [
            nn.Conv2d(channels, factor * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(factor * width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
        channels = factor * width
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).apply(kaiming_conv)
    return ImageClassifier(
        backbone, channels, num_classes=num_classes, resize=resize, **normalisation(mean, std, in_channels)
    )
