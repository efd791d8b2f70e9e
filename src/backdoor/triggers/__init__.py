"""Triggers: what an attacker writes into an image. Batched, deterministic, composable modules.

Each is a transform, too: `v2.Compose([grid(), v2.ToDtype(torch.float32, scale=True)])`. The names in small letters are
those of `conf/trigger`, with the same settings.
"""

from __future__ import annotations

from functools import partial

from backdoor.triggers.additive import Additive
from backdoor.triggers.base import Trigger
from backdoor.triggers.blend import Blend, BlendImage, BlendKitty, BlendNoise, BlendPerImageNoise
from backdoor.triggers.compose import Sequence
from backdoor.triggers.corners import AdditiveCorners
from backdoor.triggers.local import Local, Piece
from backdoor.triggers.patch import FourCorners, ImagePatch, Patch, Square
from backdoor.triggers.signal import Sinusoid, Strip
from backdoor.triggers.warp import Warp
from backdoor.triggers.watermark import Watermark

# The choices of conf/trigger.
blend_image = BlendImage
blend_kitty = BlendKitty
blend_noise = BlendNoise
blend_noise_per_image = BlendPerImageNoise
corners = FourCorners
corners_additive = AdditiveCorners
grid = Patch
image_patch = ImagePatch
sequence = Sequence
sig = Sinusoid
square = Square
strip = Strip
trojan = Watermark
warp = Warp
dbd_patch = partial(
    Patch,
    pattern=[[[180, 155], [234, 187]], [[249, 50], [82, 201]], [[112, 126], [68, 219]]],
    anchor="top_left",
    margin=4,
)

__all__ = [
    "Additive",
    "AdditiveCorners",
    "Blend",
    "BlendImage",
    "BlendKitty",
    "BlendNoise",
    "BlendPerImageNoise",
    "FourCorners",
    "ImagePatch",
    "Local",
    "Patch",
    "Piece",
    "Sequence",
    "Sinusoid",
    "Square",
    "Strip",
    "Trigger",
    "Warp",
    "Watermark",
    "blend_image",
    "blend_kitty",
    "blend_noise",
    "blend_noise_per_image",
    "corners",
    "corners_additive",
    "dbd_patch",
    "grid",
    "image_patch",
    "sequence",
    "sig",
    "square",
    "strip",
    "trojan",
    "warp",
]
