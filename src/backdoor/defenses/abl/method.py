"""ABL's two formulas, in pure torch."""

from __future__ import annotations

import torch
from torch import Tensor

from backdoor.errors import UserError, suggest

FORMS = ("lga", "flooding")
REDUCTIONS = ("batch", "sample")


def signed_floor(losses: Tensor, *, level: float, form: str = "lga", reduction: str = "batch") -> Tensor:
    """A loss that will not stay below `level`: descent above it, ascent below it.

    `lga` is sign(L - level) * L (ABL, section 3: "local gradient ascent", gamma = 0.5); `flooding` is
    |L - level| + level (Ishida et al. 2020; the authors' code trains with it, b = 0.5). Both have the gradient
    sign(L - level) * grad L, so they train alike and differ only in the value that is logged.

    Args:
        losses: float (B,), cross-entropy of each sample, >= 0.
        level: the floor (gamma, b), >= 0.
        reduction: `batch` takes the batch mean as L (the authors' code); `sample` each sample's own loss, as the paper
            writes it. With `sample` poisoned and clean rows settle at the same loss and the ranking says nothing.

    Returns:
        A scalar.

    Raises:
        UserError: unknown `form` or `reduction`.
        ValueError: `losses` is no vector, or is empty.
    """
    if form not in FORMS:
        raise UserError(f"form={form}: {suggest(form, FORMS)}")
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction={reduction}: {suggest(reduction, REDUCTIONS)}")
    if losses.ndim != 1 or len(losses) == 0:
        raise ValueError(f"losses: expected (B,) with B >= 1, got {tuple(losses.shape)}")
    value = losses.mean() if reduction == "batch" else losses
    floored = (value - level).abs() + level if form == "flooding" else torch.sign(value.detach() - level) * value
    return floored.mean()


def lowest_rows(losses: Tensor, ratio: float) -> Tensor:
    """bool (N,): the int(N * ratio) rows of the lowest loss, at least one (ABL, section 3: 1 % of the data).

    Raises:
        UserError: `ratio` outside (0, 1).
        ValueError: a loss is no number.
    """
    if not 0 < ratio < 1:
        raise UserError(f"defense.isolation_ratio={ratio}: expected a share between 0 and 1, for instance 0.01")
    if not torch.isfinite(losses).all():
        raise ValueError("losses: expected finite numbers")
    count = max(1, int(len(losses) * ratio))
    mask = torch.zeros(len(losses), dtype=torch.bool)
    mask[losses.argsort(stable=True)[:count]] = True
    return mask
