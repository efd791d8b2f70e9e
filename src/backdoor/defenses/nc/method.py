"""Neural Cleanse's formulas: the stamp, the schedule of the mask's cost, and the anomaly index; pure torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Makes the median absolute deviation of normal values their standard deviation (Wang et al. 2019, section IV).
CONSISTENCY = 1.4826


def stamp(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """(1 - m) * x + m * p (Wang et al. 2019, section IV).

    Args:
        images: float [0, 1] (..., C, H, W).
        masks: float [0, 1] (..., 1, H, W), one for all channels.
        patterns: float [0, 1] (..., C, H, W).
    """
    return (1 - masks) * images + masks * patterns


class Costs(NamedTuple):
    """The weight of each class's mask norm, and for how many epochs in a row it has been too easy or too hard.

    Attributes:
        weight: float32 (K,), the paper's lambda.
        good, bad: int64 (K,), epochs in a row with and without the wanted success.
    """

    weight: Tensor
    good: Tensor
    bad: Tensor


def adjust(costs: Costs, success: Tensor, *, first: float, patience: int, multiplier: float) -> Costs:
    """The costs after an epoch: raised where the trigger works, lowered where it does not (authors' code).

    `patience` good epochs in a row multiply the cost by `multiplier`, as many bad ones divide it by multiplier^1.5, and
    both then count from 0 again. A cost of 0 becomes `first` instead of being multiplied.

    Args:
        success: bool (K,), whether the class's trigger reached the wanted success rate in this epoch.
    """
    good = torch.where(success, costs.good + 1, 0)
    bad = torch.where(success, 0, costs.bad + 1)
    up, down = good >= patience, bad >= patience
    raised = torch.where(costs.weight > 0, costs.weight * multiplier, first)
    weight = torch.where(up, raised, torch.where(down, costs.weight / multiplier**1.5, costs.weight))
    return Costs(weight, good.masked_fill(up, 0), bad.masked_fill(down, 0))


def anomaly_indices(norms: Tensor, *, floor: float = 1.0) -> Tensor:
    """|n - median| / MAD of each norm, MAD = 1.4826 * median|n - median| (Wang et al. 2019, section IV).

    Args:
        norms: float (K,), finite, K >= 1.
        floor: the MAD counts as at least this (ours; 0 in the paper). Norms are counted in pixels, so that 1 says: what
            differs by less than a pixel is alike. It makes equal norms give 0 instead of 0 / 0, and can only
            lower an index.

    Returns:
        float64 (K,), finite and at least 0.

    Raises:
        ValueError: no norm, or one that is no number.
    """
    if norms.ndim != 1 or len(norms) == 0 or not norms.isfinite().all():
        raise ValueError(f"norms: expected (K,) finite numbers, got {tuple(norms.shape)}")
    away, spread = deviations(norms)
    return away / max(spread, floor)


def deviations(norms: Tensor) -> tuple[Tensor, float]:
    """|n - median| float64 (K,) and their MAD; medians of an even count are the mean of the middle two."""
    values = norms.double().cpu()
    away = (values - values.quantile(0.5)).abs()
    return away, CONSISTENCY * float(away.quantile(0.5))


def outliers(norms: Tensor, *, threshold: float, floor: float = 1.0) -> list[int]:
    """Classes whose mask is anomalously small, the most anomalous first (Wang et al. 2019, section IV).

    Args:
        threshold: of the anomaly index; 2 in the paper, 95 % confidence for normal norms.
    """
    indices, values = anomaly_indices(norms, floor=floor), norms.double().cpu()
    order = indices.argsort(descending=True, stable=True).tolist()
    return [one for one in order if indices[one] > threshold and values[one] <= values.quantile(0.5)]
