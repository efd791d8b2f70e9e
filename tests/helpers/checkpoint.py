"""What the tests of checkpoints share: small networks of random weights, and how they are compared."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoor.errors import UserError
from backdoor.models import WideResNet
from backdoor.store.weights import load_weights


def wrn(seed: int, mean: float = 0.5, classes: int = 10, depth: int = 16) -> WideResNet:
    """WRN-16-1 of random weights and statistics."""
    torch.manual_seed(seed)
    model = WideResNet(depth=depth, widen=1, num_classes=classes, mean=[mean] * 3, std=[0.25] * 3).eval()
    return scattered(model, seed)


def scattered(model: Any, seed: int) -> Any:
    """The model with positive random BatchNorm statistics, so that a swapped tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(seed + 41)
    return model


def identical(left: nn.Module, right: nn.Module, but: tuple[str, ...] = ()) -> bool:
    """Whether all parameters and buffers agree bit for bit."""
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in ours if k not in but
    )


def official_abl(model: WideResNet) -> dict[str, Tensor]:
    """The model's weights under the names of the authors' ABL code, in that code's order; no mean and std."""
    ours = model.state_dict()
    tensors: dict[str, Tensor] = OrderedDict()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    tensors["conv1.weight"] = ours["backbone.conv1.weight"]
    for group in (1, 2, 3):
        for block in (0, 1):
            source, name = f"backbone.groups.{group - 1}.{block}.", f"block{group}.layer.{block}."
            for layer in (1, 2):
                for part in norm:
                    tensors[f"{name}bn{layer}.{part}"] = ours[f"{source}bn{layer}.{part}"]
                tensors[f"{name}conv{layer}.weight"] = ours[f"{source}conv{layer}.weight"]
            if group > 1 and block == 0:
                tensors[f"{name}convShortcut.weight"] = ours[f"{source}shortcut.weight"]
    for part in norm:
        tensors[f"bn1.{part}"] = ours[f"backbone.bn.{part}"]
    tensors["fc.weight"], tensors["fc.bias"] = ours["head.weight"], ours["head.bias"]
    return tensors


def refused(model: nn.Module, path: Path, said: str) -> str:
    """The one line of the refusal, which must match and leave the model as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=said) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert message.startswith(f"attack.model={path}: ")
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return message
