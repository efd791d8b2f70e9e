"""A trigger as a transform: what it is given becomes a batch, and the result what was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def batched(image: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """A batch (B, C, H, W) of what a trigger was called with, and the way back.

    Args:
        image: a PIL image of mode L or RGB; a tensor (H, W), (C, H, W) or (B, C, H, W), also of torchvision's
            `tv_tensors.Image`.

    Raises:
        ValueError: anything else.
    """
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"image: expected a PIL image of mode L or RGB, got {image.mode}; convert it first")
        pixels = torch.from_numpy(np.array(image))
        batch = pixels[None, None] if image.mode == "L" else pixels.permute(2, 0, 1)[None]
        return batch, lambda out: Image.fromarray(out[0].permute(1, 2, 0).squeeze(-1).contiguous().cpu().numpy())
    if not isinstance(image, Tensor) or image.ndim not in (2, 3, 4):
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"images: expected a PIL image or a tensor (B, C, H, W), (C, H, W) or (H, W), got {got}")
    plain = image.as_subclass(Tensor) if type(image) is not Tensor else image
    batch = plain.reshape(*(1,) * (4 - image.ndim), *image.shape)
    if type(image) is Tensor:
        return batch, lambda out: out.reshape(image.shape)
    from torchvision.tv_tensors import wrap

    return batch, lambda out: wrap(out.reshape(image.shape), like=image)
