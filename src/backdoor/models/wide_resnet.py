"""Wide ResNet (Zagoruyko and Komodakis, BMVC 2016, arXiv 1605.07146), as ABL uses it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.checking.ranges import Count, Side
from backdoor.errors import UserError
from backdoor.models.base import ImageClassifier, kaiming_conv, normalisation


class WideBlock(nn.Module):
    """Pre-activation block: BN-ReLU-conv3x3-BN-ReLU-conv3x3; a changed width is shortcut by a 1x1 convolution
    of the activated input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = channels == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideBackbone(nn.Module):
    """Stem, three groups of blocks (widths 16k, 32k, 64k; strides 1, 2, 2), BN-ReLU, global average pooling.

    The authors' 8x8 pooling is right for 32-pixel images alone; global pooling is the same there.
    """

    def __init__(self, depth: Count, widen: Count, in_channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        channels, groups = 16, []
        for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            group = []
            for number in range(blocks):
                group.append(WideBlock(channels, width, stride if number == 0 else 1))
                channels = width
            groups.append(nn.Sequential(*group))
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(channels)
        self.width = channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 64 k)."""
        return F.relu(self.bn(self.groups(self.conv1(x)))).mean((2, 3))


class WideResNet(ImageClassifier):
    """WRN-depth-widen; WRN-16-1 has 175,066 parameters for three channels and ten classes.

    Convolutions start from a normal of variance 2 / (k * k * out), the head's bias from 0, as in ABL's code.

    Raises:
        UserError: a `depth` that is not 6n + 4; `widen` < 1.
    """

    # Names in the authors' ABL code (and in most CIFAR Wide ResNets before it).
    foreign_keys = (
        (r"^block1\.layer\.", "backbone.groups.0."),
        (r"^block2\.layer\.", "backbone.groups.1."),
        (r"^block3\.layer\.", "backbone.groups.2."),
        (r"convShortcut\.", "shortcut."),
        (r"^conv1\.", "backbone.conv1."),
        (r"^bn1\.", "backbone.bn."),
        (r"^fc\.", "head."),
    )

    def __init__(
        self,
        *,
        depth: Count,
        widen: Count,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resize: Side | None = None,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"model.depth={depth}: expected 6n + 4 with n >= 1, for instance 16 or 28")
        if widen < 1:
            raise UserError(f"model.widen={widen}: expected at least 1")
        backbone = WideBackbone(depth, widen, in_channels).apply(kaiming_conv)
        super().__init__(
            backbone, backbone.width, num_classes=num_classes, resize=resize, **normalisation(mean, std, in_channels)
        )
        nn.init.zeros_(self.head.bias)
