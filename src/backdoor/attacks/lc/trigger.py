"""The trigger that shows an image's perturbed version, with a patch on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backdoor.errors import UserError
from backdoor.triggers.base import Shape, Trigger, below, shape_of


class Perturbed(Trigger):
    """In training the version that PGD made of an image, looked up by its `index`, and the patch; at test the patch.

    Rows that were not perturbed (other classes than the target) get the patch alone. Clamped and rounded once, as
    the patch is.

    Args:
        patch: painted on top; the whole trigger at test time (its `at_test()` version).
        finding: name of the finding with {"images": uint8 (n, C, H, W), "index": int64 (n,), ascending}.
    """

    images: Tensor
    index: Tensor
    clean_label = True

    def __init__(self, *, patch: Trigger, finding: str = "perturbed") -> None:
        super().__init__(rounding=patch.rounding, overflow=patch.overflow, quantize=patch.quantize)
        self.patch, self.finding = patch, finding
        self.needs, self.network = (finding, *patch.needs), patch.network
        self.register_buffer("images", None)
        self.register_buffer("index", None)

    def equipped(self, findings: Mapping[str, Any]) -> Trigger:
        found = findings[self.finding]
        ready = self._changed(needs=(), images=found["images"].cpu(), index=found["index"].cpu())
        ready.patch = self.patch.equip(findings)
        return ready

    def findings_in(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        own = {"images": tensors["images"], "index": tensors["index"]}
        return {**self.patch.findings_in(below(tensors, "patch")), self.finding: own}

    def check_shape(self, shape: Shape) -> None:
        self.patch.check(shape)

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        if self.index is None or index is None:
            raise ValueError("expected equip(findings) to be called before, and index int64 (B,), the images' rows")
        if tuple(self.images.shape[1:]) != shape_of(x):
            raise UserError(
                f"attack.trigger: images {tuple(self.images.shape[1:])} were perturbed, got {shape_of(x)}; "
                "perturb these images"
            )
        rows = index.to(self.index.device)
        place = torch.searchsorted(self.index, rows).clamp(max=len(self.index) - 1)
        known = self.index[place].eq(rows)
        x[known.to(x.device)] = self.images[place[known]].to(x)
        return self.patch.paint(x, index)

    def at_test(self) -> Trigger:
        return self.patch.at_test()
