"""The protocol of a stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from backdoor.context import RunContext
from backdoor.state import State


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back: the new state and, for the record, one row a training epoch."""

    state: State
    history: list[dict[str, Any]] = field(default_factory=list)


class Stage(Protocol):
    """One step of a defense.

    Attributes:
        requires: what must be in the state: `model`, `reserved`, or names of scores, groups, findings.
        provides: what will be in it afterwards.
        control: a side branch: measured and shown, but the next stage starts from the state before it.
        enabled: False leaves it out.
    """

    requires: frozenset[str]
    provides: frozenset[str]
    control: bool
    enabled: bool

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """Do the work; `work` is a folder for resume points."""
        ...


@runtime_checkable
class Draws(Protocol):
    """A stage that draws what it found; asked once it has finished, also when its outcome came from the store."""

    def figures(self, state: State, folder: Path, name: str) -> list[Path]:
        """Draw into `folder` from what is in `state`; `name` is the stage's. Returns the files."""
        ...
