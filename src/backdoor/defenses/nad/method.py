"""Attention maps and their distance (NAD, Li et al., ICLR 2021, arXiv 2101.05930), in pure torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.errors import UserError
from backdoor.training.inference import evaluating


def attention(maps: Tensor, power: float = 2.0) -> Tensor:
    """A(F) = sum over channels of |F|^p, each image's map scaled to length 1 (section 3.2, equation 1).

    Args:
        maps: float (B, C, H, W).

    Returns:
        (B, H * W).
    """
    return F.normalize(maps.float().abs().pow(power).sum(1).flatten(1), dim=1)


def distillation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], betas: Sequence[float], power: float
) -> Tensor:
    """sum over layers of beta * mean((A_student - A_teacher)^2), a scalar (equation 3).

    The paper takes the norm of the difference, the authors' code the mean over all elements of its square, which
    the published betas go with.
    """
    parts = [
        beta * (attention(mine, power) - attention(theirs, power)).square().mean()
        for beta, mine, theirs in zip(betas, student, teacher, strict=True)
    ]
    return torch.stack(parts).sum()


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the named modules in the forward passes inside, the last pass's by name."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda part, given, result: found.__setitem__(name, result)

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]  # type: ignore[arg-type]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_layers(model: nn.Module, images: Tensor, count: int = 3) -> list[str]:
    """Names of the modules whose maps are compared: the last ones of each of the `count` smallest resolutions.

    In a residual network these are its last groups, as in the paper (section 4.1). Modules that hold others are
    preferred, so that a group is taken after its addition; where there are too few, single layers count too.

    Args:
        images: float [0, 1] (B, C, H, W).

    Raises:
        UserError: a model without feature maps of more than one pixel.
    """
    seen: list[tuple[str, tuple[int, ...], bool]] = []

    def look(name: str) -> object:
        def hook(part: nn.Module, given: tuple[Tensor, ...], result: object) -> None:
            if isinstance(result, Tensor) and result.ndim == 4 and result.shape[2] * result.shape[3] > 1:
                seen.append((name, tuple(result.shape[2:]), any(True for _ in part.children())))

        return hook

    hooks = [part.register_forward_hook(look(name)) for name, part in model.named_modules() if name]
    try:
        with evaluating(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    groups = {size: name for name, size, holds in seen if holds}
    layers = groups if len(groups) >= count else {size: name for name, size, _ in seen}
    if not layers:
        raise UserError(
            f"defense=nad: {type(model).__name__} has no feature maps (B, C, H, W) of more than one pixel; "
            "expected a convolutional model, for instance model=wrn16_1"
        )
    smallest = sorted(layers, key=lambda size: size[0] * size[1])[:count]
    return [layers[size] for size in reversed(smallest)]
