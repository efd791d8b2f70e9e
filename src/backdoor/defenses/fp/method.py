"""Which channels are pruned, in which order, and how many: Fine-Pruning's decisions, in pure torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def channel_activation(outputs: Tensor) -> Tensor:
    """Mean activation of every channel of every sample: (B, C, H, W) -> (B, C), >= 0.

    The paper's networks have a ReLU behind the last convolution and average what comes out of it (section 4.1); the
    ReLU is applied here, so that the measure is the same wherever a network has its own.
    """
    return F.relu(outputs.float()).mean((2, 3))


def dormant_first(activation: Tensor) -> Tensor:
    """int64 (C,): channels by mean activation (C,), the lowest first (section 4.1); ties in the channels' order.

    Raises:
        ValueError: an activation is no number.
    """
    if not torch.isfinite(activation).all():
        raise ValueError("activation: expected finite numbers")
    return activation.argsort(stable=True)


def pruning_levels(channels: int, step: float) -> list[int]:
    """How many channels are pruned at each level: 0, then ceil(step * channels) more each time; one always stays.

    The paper prunes one channel at a time, BackdoorBench 1 % (rounded up).
    """
    return list(range(0, channels, math.ceil(step * channels)))


def last_accepted(accuracy: Sequence[float], lowest: float) -> int:
    """The level before the first whose accuracy is below `lowest` (the last one, if none is); 0 prunes nothing."""
    failed = (place for place, value in enumerate(accuracy) if value < lowest - 1e-9)
    return max(0, next(failed, len(accuracy)) - 1)
