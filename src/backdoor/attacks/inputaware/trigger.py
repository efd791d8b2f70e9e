"""Input-aware's triggers: each image gets a pattern of its own, or, to no effect, another image's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from backdoor.attacks.inputaware.method import pasted, sharpened
from backdoor.attacks.inputaware.networks import LEAST_SIDE, Generator
from backdoor.data.loader import mix
from backdoor.errors import UserError
from backdoor.triggers.base import Shape, Trigger

# Images that go through the networks at once, always as many: kernels round otherwise for other batch sizes, and an
# image must get the same trigger whatever the batch.
AT_ONCE = 32


class InputAware(Trigger):
    """x + (G(x) - x) * M(x), with the pattern and mask networks that the attack's stages trained.

    The networks run in eval mode, in float32, without gradients; their weights are saved with the run.
    """

    needs: tuple[str, ...] = ("mask_net", "pattern_net")
    network = True
    mask_net: Generator
    pattern_net: Generator

    def equipped(self, findings: Mapping[str, Any]) -> Self:
        ready = self._changed(needs=())
        ready.mask_net = Generator.of(findings["mask_net"])
        ready.pattern_net = Generator.of(findings["pattern_net"])
        return ready

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        """Levels in, levels out, on the device of `x`; the networks' own device is used in between."""
        self.check_shape((x.shape[1], x.shape[2], x.shape[3]))
        if len(x) == 0:
            return x
        numbers = torch.arange(len(x)) if index is None else index.cpu()
        return torch.cat([self.some(*part) for part in zip(x.split(AT_ONCE), numbers.split(AT_ONCE), strict=True)])

    def some(self, x: Tensor, index: Tensor) -> Tensor:
        """`paint` for at most AT_ONCE images."""
        with torch.no_grad():
            images = x.to(self.pattern_net.mean.device) / 255
            seen = self.seen(images, index)
            full = torch.cat([seen, seen[:1].expand(AT_ONCE - len(seen), -1, -1, -1)])
            pattern, mask = self.pattern_net(full)[: len(x)], sharpened(self.mask_net(full)[: len(x)])
        return (pasted(images, pattern, mask) * 255).to(x.device)

    def seen(self, images: Tensor, index: Tensor) -> Tensor:
        """The images that the trigger is made from: these themselves."""
        return images

    def check_shape(self, shape: Shape) -> None:
        if min(shape[1:]) < LEAST_SIDE:
            raise UserError(
                f"attack=inputaware: expected images of at least {LEAST_SIDE} pixels a side for the three poolings of "
                f"its networks, got {shape[1]}x{shape[2]}; set data.image_size=32"
            )


class CrossTrigger(InputAware):
    """Another image's trigger, which must not work: for the rows of the fixed train set that keep their label.

    Which image gives it is drawn from (seed, index), among the clean train images that the victim's stage kept.

    Args:
        seed: of the draws.
    """

    needs = ("mask_net", "pattern_net", "donors", "donor_rows")
    donors: Tensor
    donor_rows: Tensor

    def __init__(self, *, seed: int = 0, **rounding: Any) -> None:
        super().__init__(**rounding)
        self.seed = seed

    def equipped(self, findings: Mapping[str, Any]) -> Self:
        ready = super().equipped(findings)
        ready.register_buffer("donors", findings["donors"])
        ready.register_buffer("donor_rows", findings["donor_rows"])
        return ready

    def seen(self, images: Tensor, index: Tensor) -> Tensor:
        """The donors of these images."""
        rows = self.donor_rows.tolist()
        chosen = torch.tensor([self.donor(row, rows) for row in index.tolist()])
        return self.donors[chosen.to(self.donors.device)].to(images.device) / 255

    def donor(self, row: int, rows: list[int]) -> int:
        """The position of an image's donor, which is never the image itself (unless it is the only one)."""
        place = mix(self.seed, row) % len(rows)
        return (place + 1) % len(rows) if rows[place] == row else place
