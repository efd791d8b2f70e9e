"""Pre-activation ResNet-18 (He et al., ECCV 2016, arXiv 1603.05027), as BackdoorBench uses it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.checking.ranges import Side
from backdoor.models.base import ImageClassifier, normalisation
from backdoor.models.wide_resnet import WideBlock


class PreActBackbone(nn.Module):
    """3x3 stem, four groups of two pre-activation blocks (64 to 512 channels), global average pooling.

    BackdoorBench's form has no BatchNorm and ReLU between the last group and the pool; `final_bn` puts them
    there, as the paper has it. Weights start as PyTorch's own, as in BackdoorBench.
    """

    def __init__(self, in_channels: int, final_bn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        channels, groups = 64, []
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            groups.append(nn.Sequential(WideBlock(channels, width, stride), WideBlock(width, width, 1)))
            channels = width
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(512) if final_bn else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 512)."""
        x = self.groups(self.conv1(x))
        if self.bn is not None:
            x = F.relu(self.bn(x))
        return x.mean((2, 3))


class PreActResNet(ImageClassifier):
    """A pre-activation network that also reads the names of BackdoorBench's checkpoints."""

    foreign_keys = (
        (r"shortcut\.0\.", "shortcut."),
        (r"^layer1\.", "backbone.groups.0."),
        (r"^layer2\.", "backbone.groups.1."),
        (r"^layer3\.", "backbone.groups.2."),
        (r"^layer4\.", "backbone.groups.3."),
        (r"^(conv1|bn)\.", r"backbone.\1."),
        (r"^linear\.", "head."),
    )


def preact_resnet18(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    final_bn: bool = False,
    resize: Side | None = None,
) -> PreActResNet:
    """PreActResNet18 for small images: 11,171,146 parameters for three channels and ten classes."""
    backbone = PreActBackbone(in_channels, final_bn)
    return PreActResNet(backbone, 512, num_classes=num_classes, resize=resize, **normalisation(mean, std, in_channels))
