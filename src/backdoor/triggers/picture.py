"""Pictures that a user brings as a trigger: read once, with their alpha channel, resized in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from backdoor.data.decode import open_image
from backdoor.errors import UserError

RESIZES = ("bilinear", "bicubic", "nearest")


def read_picture(path: str) -> Tensor:
    """An image file as float32 (4, H, W): RGB levels 0..255 and alpha in [0, 1].

    Raises:
        UserError: if the file is missing or no image.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"attack.trigger.path: expected an image file, got {path!r}, which is not one; mend the path")
    try:
        with file.open("rb") as source, open_image(source) as opened:
            rgba = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"attack.trigger.path: expected an image file (PNG, JPEG, ...), got {path!r} ({reason}); convert it"
        ) from error
    picture = torch.from_numpy(np.array(rgba)).permute(2, 0, 1).float()
    picture[3] /= 255
    return picture


def resize_picture(picture: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> tuple[Tensor, Tensor]:
    """Resize a picture of `read_picture`.

    Colours are weighted by alpha, so that what lies under transparent pixels does not bleed into the edge.

    Args:
        picture: float32 (4, H, W).
        size: (h, w), pixels.
        mode: one of `RESIZES`.
        antialias: low-pass before shrinking, as PIL does; without it, as torch does by default.

    Returns:
        Pattern float32 (3, h, w), levels 0..255, and weight float32 (h, w), in [0, 1].
    """
    alpha = picture[3:]
    stacked = torch.cat([picture[:3] * alpha, alpha])[None]
    smooth = mode != "nearest"
    resized = interpolate(
        stacked,
        size=size,
        mode=mode,
        align_corners=False if smooth else None,
        antialias=antialias and smooth,
    )[0]
    if bool((alpha == 1).all()):
        return resized[:3].clamp(0, 255), torch.ones(size)
    weight = resized[3].clamp(0, 1)
    return (resized[:3] / weight.clamp(min=1e-4)).clamp(0, 255), weight
