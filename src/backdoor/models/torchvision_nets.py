"""torchvision's networks, untrained, with a stem for small images as a choice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torchvision.models as tv
from torch import nn

from backdoor.checking.ranges import Side
from backdoor.errors import UserError, suggest
from backdoor.models.base import ImageClassifier, normalisation

STEMS = ("small", "imagenet")

# The network without its last linear layer, the width of its features, and torchvision's name of that layer.
Parts = tuple[nn.Module, int, str]


class TorchvisionClassifier(ImageClassifier):
    """A torchvision network; its own classifier layers but the last belong to the features.

    Args:
        net: the network without its last linear layer, its modules named as in torchvision.
        width: D.
        head: the name of that last layer in torchvision, so that torchvision's checkpoints can be read.
        num_classes, mean, std, resize: as in `ImageClassifier`.
    """

    def __init__(
        self,
        net: nn.Module,
        width: int,
        head: str,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize: Side | None = None,
    ) -> None:
        super().__init__(net, width, num_classes=num_classes, mean=mean, std=std, resize=resize)
        self.foreign_keys = (
            (rf"^{re.escape(head)}\.(weight|bias)$", r"head.\1"),
            (r"^(?!head\.(?:weight|bias)$|mean$|std$)", "backbone."),
        )


def torchvision_net(
    *,
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stem: str = "small",
    resize: Side | None = None,
) -> TorchvisionClassifier:
    """Build one of `NETS`.

    Args:
        name: a key of `NETS`.
        stem: `small` takes out the first reductions, so that 32-pixel images keep their detail; `imagenet` is
            torchvision's.
        resize: resize images inside the model instead, for instance to 224 with stem=imagenet.

    Raises:
        UserError: unknown `name` or `stem`; an image size that ViT cannot divide into patches.
    """
    if name not in NETS:
        raise UserError(f"model.name={name}: {suggest(name, NETS)}")
    if stem not in STEMS:
        raise UserError(f"model.stem={stem}: {suggest(stem, STEMS)}")
    net, width, head = NETS[name](stem == "small", in_channels, resize or image_size)
    return TorchvisionClassifier(
        net, width, head, num_classes=num_classes, resize=resize, **normalisation(mean, std, in_channels)
    )


def replace_first_conv(root: nn.Module, *, in_channels: int, **changes: int) -> None:
    """Rebuild the first convolution with other input channels, `kernel_size`, `stride` and `padding`.

    One that already is as asked keeps its own initial weights.
    """
    path, old = next((name, part) for name, part in root.named_modules() if isinstance(part, nn.Conv2d))
    own = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    options = own | {name: (value, value) for name, value in changes.items()}
    if options == own and in_channels == old.in_channels:
        return
    new = nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, **options)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)


def resnet18(small: bool, channels: int, size: int) -> Parts:
    """The usual CIFAR stem: a 3x3 convolution of stride 1, no max-pooling."""
    net = tv.resnet18(weights=None)
    if small:
        replace_first_conv(net, in_channels=channels, kernel_size=3, stride=1, padding=1)
        net.maxpool = nn.Identity()
    else:
        replace_first_conv(net, in_channels=channels)
    net.fc = nn.Identity()
    return net, 512, "fc"


def vgg(build: Callable[..., tv.VGG]) -> Callable[[bool, int, int], Parts]:
    """VGG; `small` has no hidden fully connected layers (120 M of 140 M parameters), as is usual on CIFAR."""

    def make(small: bool, channels: int, size: int) -> Parts:
        net = build(weights=None)
        replace_first_conv(net, in_channels=channels)
        if not small:
            net.classifier = nn.Sequential(*list(net.classifier)[:-1])
            return net, 4096, "classifier.6"
        for part in net.features.modules():
            if isinstance(part, nn.MaxPool2d):
                part.ceil_mode = True  # five poolings leave nothing of 28 pixels otherwise; at 32 the same
        net.avgpool = nn.AdaptiveAvgPool2d(1)
        net.classifier = nn.Identity()
        return net, 512, "classifier"

    return make


def densenet161(small: bool, channels: int, size: int) -> Parts:
    """`small`: 3x3 stem of stride 1, no pooling."""
    net = tv.densenet161(weights=None)
    if small:
        replace_first_conv(net, in_channels=channels, kernel_size=3, stride=1, padding=1)
        net.features.pool0 = nn.Identity()
    else:
        replace_first_conv(net, in_channels=channels)
    net.classifier = nn.Identity()
    return net, 2208, "classifier"


def mobilenet_v3_large(small: bool, channels: int, size: int) -> Parts:
    """`small`: stem of stride 1."""
    net = tv.mobilenet_v3_large(weights=None)
    replace_first_conv(net, in_channels=channels, **({"stride": 1} if small else {}))
    net.classifier = nn.Sequential(*list(net.classifier)[:-1])
    return net, 1280, "classifier.3"


def efficientnet_b3(small: bool, channels: int, size: int) -> Parts:
    """`small`: stem of stride 1."""
    net = tv.efficientnet_b3(weights=None)
    replace_first_conv(net, in_channels=channels, **({"stride": 1} if small else {}))
    net.classifier = nn.Sequential(net.classifier[0])  # dropout
    return net, 1536, "classifier.1"


def convnext_tiny(small: bool, channels: int, size: int) -> Parts:
    """`small`: patches of one pixel at 32, two at 64, torchvision's four from 128 pixels on."""
    net = tv.convnext_tiny(weights=None)
    patch = min(4, max(1, size // 32)) if small else 4
    replace_first_conv(net, in_channels=channels, kernel_size=patch, stride=patch)
    net.classifier = nn.Sequential(*list(net.classifier)[:-1])  # layer norm and flatten
    return net, 768, "classifier.2"


def vit_b_16(small: bool, channels: int, size: int) -> Parts:
    """`small`: an eighth of the image a patch, rounded up (4 pixels at 28 and 32, 8 at 64), at most 16."""
    patch = min(16, -(-size // 8)) if small else 16
    if size % patch:
        raise UserError(
            f"model=vit_b_16: images of {size} pixels do not divide into patches of {patch}; set model.resize"
        )
    net = tv.VisionTransformer(
        image_size=size, patch_size=patch, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072
    )
    if channels != 3:
        net.conv_proj = nn.Conv2d(channels, 768, patch, patch)
        nn.init.trunc_normal_(net.conv_proj.weight, std=(1 / (channels * patch * patch)) ** 0.5)  # torchvision's
        nn.init.zeros_(net.conv_proj.bias)
    net.heads = nn.Identity()
    return net, 768, "heads.head"


NETS: dict[str, Callable[[bool, int, int], Parts]] = {
    "resnet18": resnet18,
    "vgg19": vgg(tv.vgg19),
    "vgg19_bn": vgg(tv.vgg19_bn),
    "densenet161": densenet161,
    "mobilenet_v3_large": mobilenet_v3_large,
    "efficientnet_b3": efficientnet_b3,
    "convnext_tiny": convnext_tiny,
    "vit_b_16": vit_b_16,
}
