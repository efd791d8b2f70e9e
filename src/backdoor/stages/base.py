"""The protocol of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from backdoor.state import State
from backdoor.training.context import RunContext


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back: the new state and, for the record, one row a training epoch.

    The pipeline adds `collapse`: the numbers of a model that the stage has destroyed, else None.
    """

    state: State
    history: list[dict[str, Any]] = field(default_factory=list)
    collapse: dict[str, float] | None = None


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

    def figures(self, state: State, folder: Path, name: str, entry: Mapping[str, Any]) -> list[Path]:
        """Draw into `folder` from what is in `state`; `name` is the stage's, `entry` what the evaluator measured.

        Returns the files.
        """
        ...


@runtime_checkable
class Tries(Protocol):
    """A stage that chose among several models without knowing the truth; the evaluator shows what each would do."""

    def tried(self, before: State, after: State) -> Iterator[nn.Module]:
        """The models, in the order of the stage's curve; `before` and `after` it."""
        ...
