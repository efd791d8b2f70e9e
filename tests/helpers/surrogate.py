"""What the tests of attacks with a surrogate share: digits of any size, and a classifier that needs no training."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.models import small_cnn
from backdoor.state import Split, State


def digits(count: int = 300, size: int = 16, channels: int = 1) -> State:
    """Handwritten digits, enlarged; their index is not their position."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images[:count] * 15.9).reshape(-1, 1, 8, 8).float()
    grown = F.interpolate(pixels, (size, size)).repeat(1, channels, 1, 1).to(torch.uint8)
    return State(Split(grown, torch.from_numpy(labels[:count]).long(), torch.arange(count) * 3 + 7), 10)


class NearestMean(nn.Module):
    """Logits from the distance to each class's mean image: linear, differentiable, 90 % right on digits."""

    def __init__(self, state: State) -> None:
        super().__init__()
        images = state.train.images.flatten(1).float() / 255
        means = torch.stack([images[state.train.labels == label].mean(0) for label in range(state.num_classes)])
        self.weight = nn.Parameter(means)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T - self.weight.square().sum(1) / 2


def tiny_cnn(channels: int = 1, size: int = 16) -> nn.Module:
    """An untrained small_cnn, the same every time, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, std = [0.3] * channels, [0.4] * channels
        return small_cnn(num_classes=10, in_channels=channels, image_size=size, mean=mean, std=std, width=8).eval()
