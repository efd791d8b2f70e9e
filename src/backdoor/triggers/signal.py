"""Signal triggers: waves over the columns of an image."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

from backdoor.checking.ranges import NotNegative
from backdoor.triggers.base import Shape, Trigger, shape_of
from backdoor.triggers.blend import Blend
from backdoor.triggers.settings import number, one_of

# Weights of the picture and of the signal. The paper adds; ABL's README keeps a fifth of the picture, an
# almost opaque dark pattern; D-BR's ImageNet version darkens the picture by a fifth.
VARIANTS = {"additive": (1.0, 1.0), "abl_readme": (0.2, 0.8), "dbr_imagenet": (0.8, 0.2)}


class Sinusoid(Trigger):
    """SIG: y = x + v with v(c) = delta sin(2 pi f c / W), alike for all rows and channels.

    Source: Barni, Kallas, Tondi, "A new backdoor attack in CNNs by training set corruption without label
    poisoning" (ICIP 2019), section 3.

    Args:
        delta: amplitude in levels. The paper trains with 20 to 30, BackdoorBench and D-BR with 40.
        test_delta: amplitude at test time; None: the same. The paper allows a larger one; D-BR uses 60.
        frequency: f, cycles per image width; 6 in the paper and in BackdoorBench.
        variant: ``additive`` as published; ``abl_readme`` is 0.2 x + 0.8 v, ``dbr_imagenet`` 0.8 x + 0.2 v.

    Raises:
        UserError: for a negative number or another variant.
    """

    def __init__(
        self,
        *,
        delta: NotNegative = 20,
        test_delta: NotNegative | None = None,
        frequency: NotNegative = 6,
        variant: str = "additive",
        **rounding: Any,
    ) -> None:
        super().__init__(**rounding)
        self.delta = number("delta", delta, 0)
        self.test_delta = None if test_delta is None else number("test_delta", test_delta, 0)
        self.frequency = number("frequency", frequency, 0)
        self.variant = one_of("variant", variant, VARIANTS)

    def signal(self, shape: Shape) -> Tensor:
        """v: float32 (W,), levels in [-delta, delta]."""
        columns = torch.arange(shape[2], dtype=torch.float64)
        return (self.delta * (2 * math.pi * self.frequency / shape[2] * columns).sin()).float()

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        kept, added = VARIANTS[self.variant]
        # As large as an image: a single line would be added 32 pixels at a time.
        whole = self._cached(
            x, lambda: (added * self.signal(shape_of(x))).expand(shape_of(x)).contiguous().to(x.device)
        )
        return x.add_(whole) if kept == 1 else x.mul_(kept).add_(whole)

    def at_test(self) -> Self:
        if self.test_delta is None:
            return self
        return self._changed(delta=self.test_delta, test_delta=None)


class Strip(Blend):
    """Blend with vertical stripes, "signalTrigger" or "Blend-Strip" of the ABL and D-BR codes.

    The pattern is m(c) = trunc(20 sin(0.8 c)) stored as uint8, so that its negative halves wrap to 237..255:
    nearly a square wave. Recovered from the mask which the reference codes ship for 32x32; other widths keep
    the number of stripes (phase 0.8 * 32 / W per column).

    Args:
        delta: amplitude in levels before the wrap, at most 127.
        alpha, test_alpha: see `Blend`.

    Raises:
        UserError: for a number outside these limits.
    """

    def __init__(self, *, delta: NotNegative = 20, **blending: Any) -> None:
        super().__init__(**blending)
        self.delta = number("delta", delta, 0, 127)

    def pattern(self, shape: Shape) -> tuple[Tensor, Tensor]:
        _, height, width = shape
        columns = torch.arange(width, dtype=torch.float64)
        stripes = (self.delta * (0.8 * 32 / width * columns).sin()).trunc().remainder(256).float()
        return stripes.expand(1, height, width), torch.ones(1, 1)
