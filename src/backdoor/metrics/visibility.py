"""How visible a trigger is: PSNR, SSIM and the largest change of a pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

LEVELS = 255.0
SSIM_WINDOW = 11  # pixels; torchmetrics' Gaussian window of sigma 1.5 (Wang et al. 2004)
CHUNK = 256


def visibility(clean: Tensor, triggered: Tensor) -> dict[str, float | int]:
    """Means over the images; what cannot be known is absent.

    Args:
        clean, triggered: uint8 (N, C, H, W), N >= 1.

    Returns:
        `images` (N); `changed`, how many of them differ at all; `psnr`, in dB, over these alone, for it is infinite
        elsewhere; `ssim`, at most 1, for images of at least 11x11 pixels; `linf`, in levels of 0 to 255.

    Raises:
        ValueError: no images, or two stacks that differ in shape.
    """
    if clean.shape != triggered.shape or clean.ndim != 4 or not len(clean):
        raise ValueError(
            f"visibility: expected two equal (N, C, H, W), N > 0, got {tuple(clean.shape)}, {tuple(triggered.shape)}"
        )
    before, after = clean.float(), triggered.float()
    largest = (after - before).abs().flatten(1).amax(1)
    changed = largest > 0
    found: dict[str, float | int] = {
        "images": len(clean),
        "changed": int(changed.sum()),
        "linf": float(largest.double().mean()),
    }
    if changed.any():
        ratios = peak_signal_noise_ratio(
            after[changed], before[changed], data_range=LEVELS, reduction="none", dim=(1, 2, 3)
        )
        found["psnr"] = float(ratios.double().mean())
    if min(clean.shape[2:]) >= SSIM_WINDOW:
        found["ssim"] = float(torch.cat([_ssim(*pair) for pair in _chunks(after, before)]).double().mean())
    return found


def spectrum(clean: Tensor, triggered: Tensor) -> Tensor:
    """float32 (H, W): log(1 + |F|) of the difference in levels, F its centred 2-D Fourier transform.

    Mean over images and channels; the frequency 0 lies at (H // 2, W // 2). Arguments as in `visibility`.
    """
    residual = triggered.float() - clean.float()
    size = torch.fft.fftshift(torch.fft.fft2(residual), dim=(-2, -1)).abs()
    return size.log1p().mean((0, 1))


def _ssim(after: Tensor, before: Tensor) -> Tensor:
    """float (n,)."""
    values = structural_similarity_index_measure(after, before, data_range=LEVELS, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(-1)


def _chunks(first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
    """SSIM needs several float copies: a few images at a time."""
    return list(zip(first.split(CHUNK), second.split(CHUNK), strict=True))
