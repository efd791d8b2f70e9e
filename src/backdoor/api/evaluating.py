"""`bd.evaluate`: C-Acc, ASR and R-Acc of any model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from backdoor.errors import UserError, check_whole
from backdoor.experiment.datasets import PoisonedData, Transform, picture
from backdoor.experiment.evaluator import Evaluator


def evaluate(
    model: nn.Module, poisoned: PoisonedData, *, batch_size: int | None = None, device: str | torch.device | None = None
) -> dict[str, float]:
    """Measure a model on the clean and on the triggered test images.

    Args:
        model: takes what the test sets give: float32 (B, C, H, W) in [0, 1], or what their `transform` makes of the PIL
            images; returns logits (B, K). It is run in eval mode; the mode of each of its parts is put back.
        poisoned: of `bd.poison(..., test=...)`, or a run's.
        batch_size: images at once; None: as suits the device.
        device: where to run it; the model is put back where it was. None: where it is.

    Returns:
        `c_acc`, `asr`, `r_acc` and what else is known, as fractions; with several triggers `asr/NAME` and `asr_worst`.

    Raises:
        UserError: no test images; NaN logits; other numbers of logits than of classes.
    """
    if poisoned.test is None:
        raise UserError("poisoned: has no test images to measure on; give them to bd.poison as test=")
    if batch_size is not None:
        check_whole({"batch_size": batch_size})
    with placed(model, device) as where:
        seen = Seen(model, poisoned.test.transform, len(poisoned.classes), where)
        evaluator = Evaluator(
            poisoned.truth, monitor_images=0, precision="fp32", channels_last=False, batch_size=batch_size
        )
        return evaluator.metrics(seen)


@contextmanager
def placed(model: nn.Module, device: str | torch.device | None) -> Iterator[torch.device]:
    """The model on `device` inside, and where it was after; gives the device."""
    first = next(chain(model.parameters(), model.buffers()), None)
    home = torch.device("cpu") if first is None else first.device
    try:
        target = home if device is None else torch.device(device)
        model.to(target)
    except (RuntimeError, AssertionError):
        raise UserError(f"device={device}: not available here; use cpu, cuda, cuda:N or mps") from None
    try:
        yield target
    finally:
        model.to(home)


class Seen(nn.Module):
    """A model as it sees test images, its logits checked.

    Args:
        transform: of each PIL image; None: the model takes float [0, 1] images.
        classes: K.
        device: where the model is; it may have no parameter of its own.
    """

    def __init__(self, model: nn.Module, transform: Transform | None, classes: int, device: torch.device) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.model, self.transform, self.classes = model, transform, classes

    def forward(self, images: Tensor) -> Tensor:
        """float [0, 1] (B, C, H, W) -> logits (B, K)."""
        if self.transform is not None:
            pixels = (images * 255).round().to(torch.uint8).cpu()
            images = torch.stack([self.transform(picture(one)) for one in pixels]).to(images.device)
        logits = self.model(images)
        if not isinstance(logits, Tensor) or logits.shape != (len(images), self.classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"model: expected logits ({len(images)}, {self.classes}), got {got}")
        if logits.isnan().any():
            rows = int(logits.isnan().any(1).sum())
            raise UserError(f"model: NaN logits for {rows} of {len(logits)} images: it has diverged; train it again")
        return logits
