"""A pattern that an attack's stage found, added to every image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from backdoor.errors import UserError
from backdoor.triggers.base import Trigger, shape_of


class Additive(Trigger):
    """y = x + P, clipped once, with one pattern P for all images (LF, TrojanNN).

    The reference codes of TrojanNN cast the sum to uint8 before they clip it, so that it wraps; here it saturates.

    Args:
        finding: name of the finding that is P: float (C, H, W), levels, of any sign.
    """

    pattern: Tensor | None

    def __init__(self, *, finding: str = "pattern", **rounding: Any) -> None:
        super().__init__(**rounding)
        self.finding, self.needs = finding, (finding,)
        self.register_buffer("pattern", None)

    def equipped(self, findings: Mapping[str, Any]) -> Trigger:
        return self._changed(needs=(), pattern=findings[self.finding].detach().float().cpu())

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        if self.pattern is None:
            raise ValueError(f"{type(self).__name__}: it has no pattern yet; call equip(findings) first")
        pattern = self.pattern
        if tuple(pattern.shape) != shape_of(x):
            raise UserError(
                f"attack.trigger: its pattern was made for images {tuple(pattern.shape)}, got {shape_of(x)}; "
                "make one for these images"
            )
        return x.add_(self._cached(x, lambda: pattern.to(x.device)))
