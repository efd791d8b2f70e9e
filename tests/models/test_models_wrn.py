"""WRN-16-1 against a version written from the paper, and how it starts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdoor.models import WideResNet


def untrained() -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(depth=16, widen=1, num_classes=10, mean=[0.5] * 3, std=[0.25] * 3)


def slow_wrn16_1(weights: dict[str, Tensor], image: Tensor) -> Tensor:
    """Logits of one normalised image (3, 32, 32), written from the paper's description without torch.nn."""

    def conv(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
        side, pad = kernel.shape[-1], kernel.shape[-1] // 2
        padded = torch.zeros(x.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad, dtype=x.dtype)
        padded[:, pad : pad + x.shape[1], pad : pad + x.shape[2]] = x
        windows = padded.unfold(1, side, stride).unfold(2, side, stride)
        return torch.einsum("chwij,ocij->ohw", windows, kernel)

    def bn_relu(x: Tensor, name: str) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale = weights[f"{name}.weight"] / torch.sqrt(var + 1e-5)
        return ((x - mean[:, None, None]) * scale[:, None, None] + weights[f"{name}.bias"][:, None, None]).clamp(min=0)

    x = conv(image, weights["backbone.conv1.weight"], 1)
    for group, stride in enumerate((1, 2, 2)):
        for block in range(2):
            name, step = f"backbone.groups.{group}.{block}", stride if block == 0 else 1
            active = bn_relu(x, f"{name}.bn1")
            if group > 0 and block == 0:
                x = conv(active, weights[f"{name}.shortcut.weight"], step)
            middle = bn_relu(conv(active, weights[f"{name}.conv1.weight"], step), f"{name}.bn2")
            x = x + conv(middle, weights[f"{name}.conv2.weight"], 1)
    x = bn_relu(x, "backbone.bn")
    assert x.shape == (64, 8, 8)
    return weights["head.weight"] @ x.sum((1, 2)) / 64 + weights["head.bias"]


def test_wrn16_1_against_a_slow_version() -> None:
    model = untrained().double().eval()
    generator = torch.Generator().manual_seed(5)
    for key, value in model.state_dict().items():  # statistics and affine maps that are not 0 and 1
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if "bias" not in key else -0.5))
    images = torch.rand(3, 3, 32, 32, generator=generator).double()
    with torch.no_grad():
        slow = torch.stack([slow_wrn16_1(model.state_dict(), (image - 0.5) / 0.25) for image in images])
        torch.testing.assert_close(model(images), slow, rtol=1e-9, atol=1e-9)


def test_wrn16_1_starts_as_the_authors_do() -> None:
    model = untrained()
    convs = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert (len(convs), len(norms)) == (15, 13)  # 1 + 6 * 2 + 2 shortcuts; 6 * 2 + 1
    for conv in convs:
        assert conv.bias is None
        expected = (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5
        count = conv.weight.numel()
        # A sample's standard deviation scatters by 1 / sqrt(2 n), its mean by std / sqrt(n); 4.5 of these.
        assert abs(conv.weight.std().item() / expected - 1) < 4.5 / (2 * count) ** 0.5
        assert abs(conv.weight.mean().item()) < 4.5 * expected / count**0.5
    for norm in norms:
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
    assert (model.head.bias == 0).all()
