"""Triggers: what an attacker writes into an image. Batched, deterministic, composable modules."""

from __future__ import annotations

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
]
