"""Choosing neurons, and exciting them by a trigger; pure torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def strongest_neurons(weight: Tensor, count: int) -> Tensor:
    """int64 (count,): the inputs of a linear layer with the largest sum of |w| over its outputs, strongest first.

    Liu et al. (NDSS 2018), section IV, with the last layer as the one to choose in; equal sums go to the lower number.

    Args:
        weight: float (K, D).
    """
    return weight.detach().abs().sum(0).argsort(descending=True, stable=True)[:count].cpu()


def excite(
    activations: Callable[[Tensor], Tensor],
    mask: Tensor,
    *,
    channels: int,
    target: float,
    start: float,
    bound: float,
    step: float,
    steps: int,
    tolerance: float = 1e-3,
) -> Tensor:
    """The trigger that brings the neurons' activation nearest to `target` (Liu et al. 2018, section IV).

    Descends on the mean square error by the sign of the gradient, on the trigger alone (the rest of the image is
    black), and keeps the best step.

    Args:
        activations: [0, 1] images (1, C, H, W) -> (1, n).
        mask: bool (H, W), where the trigger may be; its device is where the search runs.
        target: activation to be reached.
        start: level of the mask's pixels at first.
        bound: how far from `start` a pixel may go, in levels.
        step: levels a step.
        tolerance: loss at which it stops.

    Returns:
        float32 (C, H, W), whole levels in 0..255, 0 outside the mask.
    """
    low, high = max(0.0, start - bound), min(255.0, start + bound)
    inside = mask.float().expand(channels, *mask.shape)
    trigger = (start * inside).round()
    best, lowest = trigger, float("inf")
    for _ in range(steps + 1):
        trigger = trigger.detach().requires_grad_()
        with torch.enable_grad():
            loss = (activations(trigger[None] / 255) - target).square().mean()
        reached = loss.item()
        if reached < lowest:
            best, lowest = trigger.detach(), reached
        if lowest <= tolerance:
            break
        (gradient,) = torch.autograd.grad(loss, trigger)
        trigger = (trigger.detach() - step * gradient.sign()).clamp(low, high) * inside
    return best.round()
