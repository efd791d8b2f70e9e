"""Blend triggers: y = (1 - a) x + a P with a pattern P over the whole image (Chen et al., 2017)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from backdoor.checking.ranges import Seed, Share
from backdoor.triggers.base import Shape, Trigger, fit_channels, shape_of
from backdoor.triggers.kitty import draw_kitty
from backdoor.triggers.picture import RESIZES, read_picture, resize_picture
from backdoor.triggers.settings import number, one_of, whole

# Knuth's odd multiplier: seed * GOLDEN + row differs for all rows below 2**32, and seeds lie far apart.
# torch's CPU generator looks at the low 32 bits of a seed only.
GOLDEN = 0x9E3779B1


class Blend(Trigger):
    """Base of blends; subclasses write `pattern`.

    Args:
        alpha: share of the pattern, in [0, 1]. 0.2 is the value of ABL, D-BR and BackdoorBench; DBD uses
            0.1, and the paper (Chen et al., 2017) 0.1 to 0.2.
        test_alpha: share at test time; None: the same. The paper's attacker may press harder there.

    Raises:
        UserError: for a share outside [0, 1].
    """

    def __init__(self, *, alpha: Share = 0.2, test_alpha: Share | None = None, **rounding: Any) -> None:
        super().__init__(**rounding)
        self.alpha = number("alpha", alpha, 0, 1)
        self.test_alpha = None if test_alpha is None else number("test_alpha", test_alpha, 0, 1)

    def pattern(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Pattern float32 (1, 3 or C, H, W), levels 0..255, and weight (1, 1) or (H, W), in [0, 1]."""
        raise NotImplementedError

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        pattern, weight = self._cached(x, lambda: self._fitted(x))
        return x.lerp_(pattern, self.alpha * weight)

    def at_test(self) -> Self:
        if self.test_alpha is None:
            return self
        return self._changed(alpha=self.test_alpha, test_alpha=None)

    def _fitted(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        pattern, weight = self.pattern(shape_of(x))
        # Whole rows in memory: the stripes of one line would be added 32 pixels at a time.
        full = fit_channels(pattern, x.shape[1]).to(x.device).contiguous()
        return full, weight.item() if weight.numel() == 1 else weight.to(x.device)


class BlendImage(Blend):
    """Blend with an image file, stretched over the image; its alpha channel, if any, is a mask (a logo).

    Args:
        path: the file, anything Pillow reads.
        resize: bilinear, bicubic or nearest. D-BR resizes bilinear without antialiasing, DBD bicubic with it.
        antialias: low-pass before shrinking.

    Raises:
        UserError: if the file cannot be read or a setting is outside its limits.
    """

    def __init__(self, path: str, *, resize: str = "bilinear", antialias: bool = True, **blending: Any) -> None:
        super().__init__(**blending)
        self.picture = read_picture(path)
        self.resize = one_of("resize", resize, RESIZES)
        self.antialias = bool(antialias)

    def pattern(self, shape: Shape) -> tuple[Tensor, Tensor]:
        return resize_picture(self.picture, shape[1:], self.resize, self.antialias)


class BlendNoise(Blend):
    """Blend with one field of uniform noise in {0, ..., 255}, the random pattern of Chen et al. (2017).

    Args:
        seed: of the field, which depends on nothing else but the image shape.
    """

    def __init__(self, *, seed: Seed = 0, **blending: Any) -> None:
        super().__init__(**blending)
        self.seed = whole("seed", seed)

    def pattern(self, shape: Shape) -> tuple[Tensor, Tensor]:
        return noise(shape, self.seed), torch.ones(1, 1)


class BlendPerImageNoise(Blend):
    """Blend with fresh noise for each image, drawn from (seed, index).

    This is what the reference codes do under the name of a random trigger: the images share
    no pattern, so little is learnt and the ASR stays low. For comparisons; `BlendNoise` is the attack.

    Args:
        seed: with the row in the original set it fixes an image's noise.
    """

    def __init__(self, *, seed: Seed = 0, **blending: Any) -> None:
        super().__init__(**blending)
        self.seed = whole("seed", seed)

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        if index is None:
            raise ValueError("index: expected int64 (B,), the rows in the original set, got None")
        shape = shape_of(x)
        fields = torch.empty(x.shape)
        for field, row in zip(fields, index.tolist(), strict=True):
            field.copy_(noise(shape, self.seed * GOLDEN + row))
        return x.lerp_(fields.to(x.device), self.alpha)


class BlendKitty(Blend):
    """Blend with a drawn cartoon cat, which stands in for the trademarked picture of the reference codes.

    The drawing is our own and has the statistics of the original (see `draw_kitty`).
    """

    def pattern(self, shape: Shape) -> tuple[Tensor, Tensor]:
        return draw_kitty(*shape[1:]), torch.ones(1, 1)


def noise(shape: Shape, seed: Seed) -> Tensor:
    """Uniform float32 (C, H, W) in {0, ..., 255} from the low 32 bits of `seed`."""
    generator = torch.Generator().manual_seed(seed % 2**32)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.float32)
