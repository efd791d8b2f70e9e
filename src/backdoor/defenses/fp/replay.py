"""All levels of pruning for the price of little more than one pass: what lies before the pruned layer runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backdoor.defenses.fp.method import channel_activation
from backdoor.defenses.fp.unit import Unit


@contextmanager
def replayed(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Inside, the named modules compute at their first call and repeat that output at every other.

    Exact as long as all calls are of the same images and no weight of theirs changes.
    """
    modules = [model.get_submodule(name) for name in names]
    for module in modules:
        vars(module)["forward"] = once(module.forward)
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward")


def once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function`, computed once; each caller gets a copy, for an in-place ReLU may write to it."""
    kept: list[Tensor] = []

    def call(*args: Any, **kwargs: Any) -> Tensor:
        if not kept:
            kept.append(function(*args, **kwargs).clone())
        return kept[0].clone()

    return call


class Activations(nn.Module):
    """Mean activation of the unit's channels: images float [0, 1] (B, c, H, W) -> (B, C)."""

    def __init__(self, model: nn.Module, unit: Unit) -> None:
        super().__init__()
        self.model, self.end = model, unit.end

    def forward(self, images: Tensor) -> Tensor:
        """(B, c, H, W) -> (B, C)."""
        seen: list[Tensor] = []

        def look(module: nn.Module, given: Any, output: Tensor) -> None:
            seen.append(channel_activation(output))

        handle = self.model.get_submodule(self.end).register_forward_hook(look)
        try:
            self.model(images)
        finally:
            handle.remove()
        return seen[-1]


class Levels(nn.Module):
    """Logits at each level of pruning: images float [0, 1] (B, c, H, W) -> (B, L, K).

    Args:
        keep: bool (L, C), True where a channel is kept.
    """

    keep: Tensor

    def __init__(self, model: nn.Module, unit: Unit, keep: Tensor) -> None:
        super().__init__()
        self.model, self.unit = model, unit
        self.register_buffer("keep", keep)

    def forward(self, images: Tensor) -> Tensor:
        """(B, c, H, W) -> (B, L, K)."""
        keep = self.keep.to(images.device)
        with replayed(self.model, self.unit.settled):
            return torch.stack([self.logits(images, level) for level in keep], 1)

    def logits(self, images: Tensor, keep: Tensor) -> Tensor:
        """(B, K) without the channels whose `keep` bool (C,) is False."""

        def mask(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            return output * keep[:, None, None]

        handle = self.model.get_submodule(self.unit.end).register_forward_hook(mask)
        try:
            return self.model(images)
        finally:
            handle.remove()
