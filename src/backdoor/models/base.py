"""The shape of every classifier: normalisation inside, a penultimate layer, a linear head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.errors import UserError


class ImageClassifier(nn.Module):
    """Images in [0, 1] -> logits.

    Args:
        backbone: normalised images (B, C, H, W) -> features (B, D).
        width: D.
        num_classes: K.
        mean, std: one value a channel; saved with the weights, so that a checkpoint is whole by itself.
        resize: side in pixels that images are resized to inside the model (bilinear, antialiased); None = as
            they are.

    Attributes:
        preprocess: None, or a module that cleans images (B, C, H, W) in [0, 1] before all else (a purifier); saved
            with the weights, and copied and trained along by the stages after.
        foreign_keys: (regular expression, replacement) pairs that turn the parameter names of well-known
            other code into ours, applied in order by `load_weights`.

    Raises:
        UserError: as many means as standard deviations, all of these > 0, and `resize` >= 1 are expected.
    """

    foreign_keys: tuple[tuple[str, str], ...] = ()
    mean: Tensor
    std: Tensor
    preprocess: nn.Module | None

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize: int | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise UserError(
                f"data.mean={list(mean)}, data.std={list(std)}: expected one mean and one std > 0 a channel"
            )
        if resize is not None and resize < 1:
            raise UserError(f"model.resize={resize}: expected a side of at least 1 pixel, or null")
        self.backbone, self.head = backbone, nn.Linear(width, num_classes)
        self.resize = resize
        self.register_module("preprocess", None)
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1))

    def features(self, images: Tensor) -> Tensor:
        """float [0, 1] (B, C, H, W) -> penultimate features (B, D)."""
        if self.preprocess is not None:
            images = self.preprocess(images)
        side = self.resize
        if side is not None and images.shape[-2:] != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return self.backbone((images - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """float [0, 1] (B, C, H, W) -> logits (B, K)."""
        return self.head(self.features(images))


def normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> dict[str, Sequence[float]]:
    """`mean` and `std` of a classifier; 0.5 and 0.25 a channel where they are None, as for data=folder."""
    return {
        "mean": [0.5] * channels if mean is None else mean,
        "std": [0.25] * channels if std is None else std,
    }


class Penultimate(nn.Module):
    """A classifier's features, or some of them, as a module: images (B, C, H, W) -> (B, n).

    Args:
        neurons: int64 (n,), which features; None: all.
    """

    def __init__(self, model: ImageClassifier, neurons: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.neurons = model, neurons

    def forward(self, images: Tensor) -> Tensor:
        """float [0, 1] (B, C, H, W) -> (B, n)."""
        found = self.model.features(images)
        return found if self.neurons is None else found[:, self.neurons]


def kaiming_conv(module: nn.Module) -> None:
    """Normal weights of variance 2 / (k * k * out) for convolutions, 1 and 0 for BatchNorm.

    He et al., ICCV 2015, arXiv 1502.01852, section 2.2, in its backward (fan-out) form.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
