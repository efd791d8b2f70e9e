"""SimCLR's augmentation (Chen et al., ICML 2020), batched by kornia on the device where the images are."""

from __future__ import annotations

from typing import Any

import kornia.augmentation as augmentation
import torch
from torch import Tensor, nn

from backdoor.errors import UserError

BLUR_SIDE, BLUR_SIGMA = 9, (0.1, 2.0)  # pixels; a kernel of 9 reaches two of the largest sigma


class Views(nn.Module):
    """Random resized crop, horizontal flip, colour jitter, greyscale; the draws come from torch's global generator.

    A fit seeds that generator at the start of each epoch, so a resumed one draws alike.

    Args:
        scale: smallest share of the area that is kept.
        flip: probability; 0 where a mirrored image means something else (digits, signs).
        jitter: strength of brightness, contrast and saturation; a quarter of it for hue; applied with
            probability 0.8. Grey images get brightness and contrast alone.
        grey: probability of greyscale, for images of three channels.
        blur: probability of a Gaussian blur with a sigma of 0.1 to 2 pixels.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self, *, scale: float = 0.2, flip: float = 0.5, jitter: float = 0.4, grey: float = 0.2, blur: float = 0.0
    ) -> None:
        super().__init__()
        self.options = {"scale": scale, "flip": flip, "jitter": jitter, "grey": grey, "blur": blur}
        for setting, value in self.options.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"views.{setting}={value}: expected a number from 0 to 1")
        self.pipeline: nn.Module | None = None

    def make(self, channels: int, height: int, width: int) -> nn.Module:
        """The kornia pipeline for images of this shape."""
        chosen = self.options
        parts: list[nn.Module] = []
        if chosen["scale"] < 1:
            # `resample` reads all crops in one warp; `slice` would loop over the images.
            crop: dict[str, Any] = {"scale": (chosen["scale"], 1.0), "cropping_mode": "resample"}
            parts.append(augmentation.RandomResizedCrop((height, width), **crop))
        if chosen["flip"]:
            parts.append(augmentation.RandomHorizontalFlip(p=chosen["flip"]))
        if chosen["jitter"]:
            strength = chosen["jitter"]
            colour = {"saturation": strength, "hue": strength / 4} if channels == 3 else {}
            parts.append(augmentation.ColorJitter(strength, strength, p=0.8, **colour))
        if chosen["grey"] and channels == 3:
            parts.append(augmentation.RandomGrayscale(p=chosen["grey"]))
        if chosen["blur"]:
            side = min(BLUR_SIDE, min(height, width) // 2 * 2 - 1)  # odd, and no wider than the image
            parts.append(augmentation.RandomGaussianBlur((side, side), BLUR_SIGMA, p=chosen["blur"]))
        # A kornia pipeline, though its parts are typed as modules here.
        return augmentation.AugmentationSequential(*parts, data_keys=["input"]) if parts else nn.Identity()  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """float [0, 1] (B, C, H, W) -> one view of each, the same shape and range."""
        if self.pipeline is None:
            self.pipeline = self.make(*images.shape[1:])
        with torch.autocast(images.device.type, enabled=False):
            return self.pipeline(images.float()).clamp(0, 1)
