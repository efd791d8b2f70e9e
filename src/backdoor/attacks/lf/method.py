"""A universal pattern of low frequencies, found by gradient descent; pure torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def dct_basis(side: int) -> Tensor:
    """float64 (side, side), orthonormal: row k is the k-th cosine of the DCT-II."""
    place = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    basis = (torch.arange(side, dtype=torch.float64)[:, None] * place).cos() * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis


def spectrum(images: Tensor) -> Tensor:
    """The orthonormal DCT-II over the last two axes: (..., H, W) -> (..., H, W), frequency 0 first."""
    rows, columns = (dct_basis(side).to(images) for side in images.shape[-2:])
    return rows @ images @ columns.T


def pass_band(size: tuple[int, int], band: float) -> tuple[int, int]:
    """How many frequencies pass along each axis of (H, W): a share `band` of them, at least one."""
    height, width = (max(1, math.floor(band * side + 0.5)) for side in size)
    return height, width


def low_pass(images: Tensor, band: float) -> Tensor:
    """Keep the lowest DCT coefficients of (..., H, W), a share `band` of them along each axis."""
    height, width = images.shape[-2:]
    kept = pass_band((height, width), band)
    rows, columns = (dct_basis(side)[:count].to(images) for side, count in zip((height, width), kept, strict=True))
    return rows.T @ (rows @ images @ columns.T) @ columns


def project(pattern: Tensor, *, bound: float, band: float) -> Tensor:
    """A pattern (C, H, W) of the pass band whose absolute values do not exceed `bound`.

    Clipping alone would add high frequencies. So the pattern is clipped, filtered again, and then scaled down as far
    as its largest value asks for.
    """
    smooth = low_pass(low_pass(pattern, band).clamp(-bound, bound), band)
    return smooth * (bound / smooth.abs().max().clamp(min=bound))


def smooth_pattern(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    *,
    shape: tuple[int, int, int],
    target: int,
    bound: float,
    band: float,
    lr: float,
    penalty: float = 0.0,
) -> Tensor:
    """min over smooth v, |v| <= bound, of the mean cross-entropy CE(f(clip(x + v)), target) + penalty |v / bound|^2.

    Zeng et al. (ICCV 2021) look for such a v by DeepFool steps, image after image; this is the same
    problem, solved by Adam on batches, with the low-pass filter after every step.

    Args:
        forward: [0, 1] images -> logits (B, K).
        batches: float (B, C, H, W) in [0, 1], one a step.
        bound: largest absolute value, in levels.
        band: share of the DCT frequencies of each axis that may be used.
        lr: Adam's, in levels.
        penalty: weight of the mean square of v / bound.

    Returns:
        float32 (C, H, W), levels in [-bound, bound], on the device of the batches.
    """
    pattern, optimizer = torch.empty(0), None
    for images in batches:
        if optimizer is None:
            pattern = torch.zeros(shape, device=images.device, requires_grad=True)
            optimizer = torch.optim.Adam([pattern], lr=lr)
        logits = forward((images + pattern / 255).clamp(0, 1))
        loss = F.cross_entropy(logits, torch.full((len(images),), target, device=images.device))
        loss = loss + penalty * (pattern / bound).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pattern.copy_(project(pattern, bound=bound, band=band))
    return pattern.detach()
