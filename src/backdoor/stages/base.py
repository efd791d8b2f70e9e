"""What a stage is, and what it hands back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


class Stage:
    """One step of a defense, or of what an attacker makes before it poisons.

    A subclass writes `run`; what it declares here is a class attribute, or set in its constructor.

    Attributes:
        requires: what must be in the state: `model`, `reserved`, or names of scores, groups, findings.
        provides: what will be in it afterwards.
        control: a side branch: measured and shown, but the next stage starts from the state before it.
        enabled: False leaves it out.
        reads: `train`, or `images` for a stage that does not look at the labels of the train set.
        ignores: what of the run it makes no use of, for instance `model`; runs that differ in it share its outcome.
        reserved_rows: how many trusted rows it needs, if it requires `reserved`.
    """

    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    control: bool = False
    enabled: bool = True
    reads: str = "train"
    ignores: frozenset[str] = frozenset()
    reserved_rows: int = 1

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """Do the work; `work` is a folder for resume points."""
        raise NotImplementedError

    def figures(self, state: State, folder: Path, name: str, entry: Mapping[str, Any]) -> list[Path]:
        """Draw what it found into `folder`; also asked when its outcome came from the store.

        Args:
            state: the state after the stage.
            name: the stage's.
            entry: what the evaluator measured.

        Returns:
            The files; none by default.
        """
        return []

    def tried(self, before: State, after: State) -> Iterable[nn.Module]:
        """The models among which it chose without knowing the truth, in the order of its curve; none by default.

        The evaluator shows what each of them would do.
        """
        return ()

    def preprocess(self, state: State) -> nn.Module | None:
        """What cleans the input of its model: images (B, C, H, W) in [0, 1] -> the same; None if nothing does.

        It fills `ImageClassifier.preprocess` and is not trained yet. A file holds only its tensors, so it is made once
        more, from the stage's settings and the state that the stage began with, whenever the outcome is loaded.
        """
        return None
