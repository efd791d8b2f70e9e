"""Projected gradient ascent inside an L_inf ball, in pure torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor.errors import UserError, check_whole


def check_ball(eps: float, step: float, steps: int) -> None:
    """Raises UserError for a radius, a step or a number of steps that PGD cannot use; both in levels."""
    for setting, value in (("eps", eps), ("step", step)):
        if not isinstance(value, int | float) or not 0 < value <= 255:
            raise UserError(f"{setting}={value}: expected levels above 0 and up to 255, for instance 8")
    check_whole({"steps": steps})


def in_ball(moved: Tensor, images: Tensor, eps: float) -> Tensor:
    """`moved` brought back to within `eps` of `images` (L_inf) and into [0, 1]; all (B, C, H, W)."""
    return torch.minimum(torch.maximum(moved, images - eps), images + eps).clamp(0, 1)


def pgd(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    start: Tensor | None = None,
) -> Tensor:
    """Untargeted PGD: raise the cross-entropy of the true labels (Madry et al. 2018, arXiv 1706.06083, section 2).

    Args:
        forward: [0, 1] images -> logits (B, K).
        images: float (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        eps, step: radius and step, as shares of the range [0, 1].
        start: where to begin, relative to `images`; None: at the images themselves.

    Returns:
        Perturbed images in the ball and in [0, 1], detached. An image's result does not depend on its batch.
    """
    current = images if start is None else in_ball(images + start, images, eps)
    for _ in range(steps):
        current = current.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(forward(current), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, current)
        current = in_ball(current.detach() + step * gradient.sign(), images, eps)
    return current.detach()


def to_pixels(perturbed: Tensor, images: Tensor, eps: float) -> Tensor:
    """Round to whole levels without leaving the ball.

    Args:
        perturbed: float (B, C, H, W) in [0, 1].
        images: uint8 (B, C, H, W), what was perturbed.
        eps: radius in levels; of a fraction only the whole part can be used.

    Returns:
        uint8 (B, C, H, W), within floor(eps) levels of `images`.
    """
    original, radius = images.to(torch.int16), math.floor(eps)
    change = ((perturbed.float() * 255).round().to(torch.int16) - original).clamp(-radius, radius)
    return (original + change).to(torch.uint8)
