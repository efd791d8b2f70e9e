"""Listening to a fit without a run around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from backdoor.training.observing import observed_by


class Ears:
    """Hands every row on, a resumed one too."""

    def __init__(self, on_row: Callable[[dict[str, Any]], Any]) -> None:
        self.on_row = on_row

    def on_stage(self, name: str, key: str) -> None:
        pass

    def on_epoch(self, row: dict[str, Any], model: nn.Module | None) -> None:
        self.on_row(row)

    def on_resumed(self, row: dict[str, Any]) -> None:
        self.on_row(row)


def hearing(on_row: Callable[[dict[str, Any]], Any]) -> AbstractContextManager[None]:
    """`with hearing(rows.append): fit(...)`."""
    return observed_by(Ears(on_row))
