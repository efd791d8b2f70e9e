"""TrojanNN's trigger: an additive pattern that knows how large it will be."""

from __future__ import annotations

from typing import Any

from backdoor.attacks.trojannn.mask import Mask
from backdoor.triggers.additive import Additive
from backdoor.triggers.base import Shape


class NeuronTrigger(Additive):
    """The optimised pattern; a mask that does not fit the images is refused before anything trains.

    Args:
        mask: where the pattern may be.
    """

    def __init__(self, *, mask: Mask, **additive: Any) -> None:
        super().__init__(**additive)
        self.mask = mask

    def check_shape(self, shape: Shape) -> None:
        self.mask.draw(shape)
