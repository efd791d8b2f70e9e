"""The last convolution of any network: found by watching one pass, pruned in its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backdoor.errors import UserError
from backdoor.training.inference import evaluating


@dataclass(frozen=True)
class Call:
    """One call of a submodule: its name, what went in first, what came out."""

    name: str
    module: nn.Module
    given: Any
    output: Any


@dataclass(frozen=True)
class Unit:
    """The last convolution that a network executes, with the BatchNorm that reads its output directly, if one does.

    Attributes:
        conv: the convolution's name.
        norm: the BatchNorm's name, or None.
        channels: C of the output.
        settled: the outermost modules whose one call is over when the unit's is (the unit's own among them): their
            outputs do not depend on what is pruned.
    """

    conv: str
    norm: str | None
    channels: int
    settled: tuple[str, ...]

    @property
    def end(self) -> str:
        """The module whose output is pruned."""
        return self.norm or self.conv


def trace(model: nn.Module, images: Tensor) -> list[Call]:
    """The calls of all submodules in one pass in eval mode, in the order in which they end.

    Args:
        images: float [0, 1] (B, C, H, W).
    """
    calls: list[Call] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, given: Any, output: Any) -> None:
        calls.append(Call(names[module], module, given[0] if given else None, output))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with evaluating(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def find_unit(model: nn.Module, images: Tensor) -> Unit:
    """The last convolution that is executed for `images` float [0, 1] (B, C, H, W), whatever the network's shape.

    Raises:
        UserError: fewer than two convolutions: the only one then reads the image itself (a vision transformer cuts
            it into patches so), and which of its channels are dormant tells nothing of what was learnt.
    """
    calls = trace(model, images)
    places = [place for place, call in enumerate(calls) if isinstance(call.module, nn.Conv2d)]
    found = len({calls[place].name for place in places})
    if found < 2:
        kind = type(model).__name__
        raise UserError(
            f"model: {kind} runs {'one convolution' if found else 'no convolution'}, and Fine-Pruning needs a network "
            "whose last convolution reads learnt features; choose a convolutional one, for instance model=wrn16_1, "
            "resnet18, vgg19 or small_cnn"
        )
    last = places[-1]
    end = next((place for place in range(last + 1, len(calls)) if reads(calls[place], calls[last].output)), last)
    conv = calls[last].module
    assert isinstance(conv, nn.Conv2d)
    norm = None if end == last else calls[end].name
    return Unit(calls[last].name, norm, conv.out_channels, settled(calls, end))


def reads(call: Call, output: Tensor) -> bool:
    """Whether the call is that of a BatchNorm with weights, and its input the very tensor `output`."""
    return isinstance(call.module, _BatchNorm) and call.module.affine and call.given is output


def settled(calls: list[Call], end: int) -> tuple[str, ...]:
    """`Unit.settled` for the unit whose output is that of call number `end`."""
    often = Counter(call.name for call in calls)
    over = {call.name for call in calls[: end + 1] if often[call.name] == 1 and isinstance(call.output, Tensor)}

    def inside(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:depth]) in over for depth in range(1, len(parts)))

    return tuple(sorted(name for name in over if not inside(name)))


def prune_channels(model: nn.Module, unit: Unit, channels: Tensor) -> dict[str, Tensor]:
    """Make the unit's output 0 in those channels, in the weights themselves (in place).

    The convolution's filters and biases become 0, and so do the scale and the shift of the BatchNorm that reads it:
    otherwise the running statistics would make a constant of the 0.

    Args:
        channels: int64 (n,).

    Returns:
        Parameter name -> bool (C,), True where a channel is kept; what `zero_pruned` takes.
    """
    keep = torch.ones(unit.channels, dtype=torch.bool)
    keep[channels] = False
    parts = [name for name in (unit.conv, unit.norm) if name is not None]
    masks = {
        f"{part}.{name}": keep.clone()
        for part in parts
        for name, _ in model.get_submodule(part).named_parameters(recurse=False)
    }
    zero_pruned(model, masks)
    return masks


@torch.no_grad()
def zero_pruned(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the rows of the named parameters to 0, in place, where a mask bool (C,) is False."""
    for name, keep in masks.items():
        parameter = model.get_parameter(name)
        parameter[~keep.to(parameter.device)] = 0.0
