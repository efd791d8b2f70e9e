"""SSBA's trigger: the residual that the trained encoder gives for each image and the run's secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backdoor.attacks.ssba.method import Encoder
from backdoor.errors import UserError
from backdoor.triggers.base import Trigger

BATCH_PIXELS = 1 << 16  # 64 images of 32x32, one of 256x256


class Steganography(Trigger):
    """x' = x + E(x, s*), with one secret s* for all images (Li et al., ICCV 2021).

    The encoder runs in fp32 on batches of one fixed size, the last of
    them filled up: libraries choose other kernels for other sizes, whose last digits differ, and rounding can make
    a level of that. So an image gets the same pixels whatever it is batched with.
    """

    needs = ("encoder", "secret")
    network = True
    secret: Tensor

    def __init__(self, **rounding: Any) -> None:
        super().__init__(**rounding)
        self.encoder: Encoder | None = None

    def equipped(self, findings: Mapping[str, Any]) -> Trigger:
        other = self._changed(needs=())
        other.encoder = Encoder.of(findings["encoder"]).eval().requires_grad_(False)
        other.register_buffer("secret", findings["secret"].float().clone())
        return other

    @torch.no_grad()
    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        if self.encoder is None:
            raise UserError("attack.trigger: Steganography needs a trained encoder; use attack=ssba")
        self._same_shape(self.encoder, x)
        count, home = max(1, BATCH_PIXELS // x[0, 0].numel()) if len(x) else 1, self.secret.device
        painted = torch.empty_like(x)
        with torch.autocast(home.type, enabled=False):
            secret = self.secret.expand(count, -1)
            for start in range(0, len(x), count):
                part = x[start : start + count]
                batch = torch.zeros(count, *x.shape[1:], device=home)
                batch[: len(part)] = part / 255
                residual = self.encoder(batch, secret)[: len(part)]
                painted[start : start + count] = part + 255 * residual.to(x.device)
        return painted

    def _same_shape(self, encoder: Encoder, x: Tensor) -> None:
        shape = tuple(encoder.shape.tolist())
        if tuple(x.shape[1:]) != shape:
            raise UserError(
                f"attack.trigger: the encoder was trained on images {shape}, got {tuple(x.shape[1:])}; "
                "train one for these images"
            )
