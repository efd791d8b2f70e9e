"""Pre-activation ResNet-18 (He et al., ECCV 2016, arXiv 1603.05027), as BackdoorBench uses it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.models.base import ImageClassifier
from backdoor.models.wide_resnet import WideBlock


class PreActBackbone(nn.Module):
    """3x3 stem, four stages of two pre-activation blocks (64 to 512 channels), global average pooling.

    BackdoorBench's form has no BatchNorm and ReLU between the last stage and the pool; `final_bn` puts them there,
    as the paper has it.
    """

    def __init__(self, in_channels: int, final_bn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        channels, blocks = 64, []
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [WideBlock(channels, width, stride), WideBlock(width, width, 1)]
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(512) if final_bn else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 512)."""
        x = self.blocks(self.conv1(x))
        if self.bn is not None:
            x = F.relu(self.bn(x))
        return x.mean((2, 3))


def preact_resnet18(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    mean: Sequence[float],
    std: Sequence[float],
    final_bn: bool = False,
    resize: int | None = None,
) -> ImageClassifier:
    """PreActResNet18 for small images (11.2 M parameters)."""
    backbone = PreActBackbone(in_channels, final_bn)
    return ImageClassifier(backbone, 512, num_classes=num_classes, mean=mean, std=std, resize=resize)
