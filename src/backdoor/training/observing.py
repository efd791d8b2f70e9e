"""What a run tells of itself while it works, without a reference from those who work to those who watch.

A stage, its module and its callbacks are handed a `RunContext` and a Trainer. If one of these held the evaluator, a
module could walk from `trainer.callbacks` to the test set, the trigger and the poisoned rows. So nobody is handed a
watcher: whoever trains calls the functions below, and who listens is kept in a context variable of this module.
(No process can keep its own code from a variable that the code imports on purpose; what is shut is every way that
leads on from what a stage was given.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import nn


class Observer(Protocol):
    """Listens to a run; see `observed_by`."""

    def on_stage(self, name: str, key: str) -> None:
        """A stage begins, or is taken from the store; `key` is that of its artifact."""

    def on_epoch(self, row: dict[str, Any], model: nn.Module | None) -> None:
        """An epoch has ended: its row, and the model as it is now, if the epoch trained one."""

    def on_resumed(self, row: dict[str, Any]) -> None:
        """An epoch of an earlier call, which was killed."""


_OBSERVER: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Until the block ends, `observer` hears what the run says."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def stage_begins(name: str, key: str) -> None:
    """Say that a stage begins."""
    if observer := _OBSERVER.get():
        observer.on_stage(name, key)


def epoch_ended(row: dict[str, Any], model: nn.Module | None = None) -> None:
    """Say that an epoch has ended; `row`: `stage`, `epoch` (from 1), and its measurements on train rows."""
    if observer := _OBSERVER.get():
        observer.on_epoch(row, model)


def epoch_resumed(row: dict[str, Any]) -> None:
    """Say again what an earlier, killed call said of an epoch."""
    if observer := _OBSERVER.get():
        observer.on_resumed(row)
