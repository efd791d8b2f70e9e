"""What BatchNorm does while a defense moves a trained network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backdoor.errors import UserError, suggest

BN_MODES = ("train", "frozen")


def check_bn_mode(mode: str, choices: Sequence[str] = BN_MODES) -> str:
    """The mode itself.

    Raises:
        UserError: it is none of `choices`.
    """
    if mode not in choices:
        raise UserError(f"bn_mode={mode}: {suggest(mode, choices)}")
    return mode


def freeze_batch_norm(model: nn.Module) -> None:
    """Every BatchNorm in eval mode: it uses the statistics that it has, and keeps them. `train()` undoes it."""
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
