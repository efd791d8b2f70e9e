"""Detectors that look at the victim's penultimate features, class by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backdoor.errors import UserError
from backdoor.models.base import ImageClassifier, Penultimate
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.inference import map_split

# A class of fewer rows has no spread to look at.
FEWEST = 3


class Detection(NamedTuple):
    """What a detector says of one class.

    Attributes:
        scores: float32 (n,), higher = more suspect, comparable between classes.
        flagged: bool (n,).
    """

    scores: Tensor
    flagged: Tensor


Detector = Callable[[Tensor], Detection]


def nothing(rows: int) -> Detection:
    """Scores of 0 and no flag."""
    return Detection(torch.zeros(rows), torch.zeros(rows, dtype=torch.bool))


def by_class(features: Tensor, labels: Tensor, detector: Detector) -> Detection:
    """Run a detector on the rows of each label.

    Args:
        features: float (N, D).
        labels: int64 (N,).
        detector: float64 (n, D), n >= `FEWEST`, not all rows alike -> Detection.

    Returns:
        Scores (N,) and flags (N,). Classes that are too small, or whose rows are all alike, get 0 and no flag.
    """
    scores, flagged = nothing(len(labels))
    for label in labels.unique():
        rows = labels.eq(label).nonzero().flatten()
        own = features[rows].double()
        if len(rows) >= FEWEST and bool((own - own[0]).any()):
            scores[rows], flagged[rows] = detector(own)
    return Detection(scores, flagged)


def features_of(model: nn.Module | None, split: Split, *, stage: str, channels_last: bool = True) -> Tensor:
    """float32 (N, D): penultimate features of every row, in eval mode and fp32, without augmentation.

    Raises:
        UserError: a model without `features`; features that are no numbers.
    """
    if not isinstance(model, ImageClassifier):
        raise UserError(f"stage {stage}: expected a model with features and a linear head, got {type(model).__name__}")
    found = map_split(Penultimate(model), split, lambda values, labels: values, channels_last=channels_last)
    if not torch.isfinite(found).all():
        raise UserError(f"stage {stage}: the model's features are no numbers; the victim's training has diverged")
    return found


class FeatureDetector(Stage):
    """Scores and flags the train rows by a detector of the victim's features.

    Args:
        score: name of the score.
        detector: see `by_class`.
        control, enabled: see `Stage`.

    Provides:
        the score, float32 (N,), and the group `suspect`, bool (N,).
    """

    requires = frozenset({"model"})

    def __init__(self, *, score: str, detector: Detector, control: bool = False, enabled: bool = True) -> None:
        detector(torch.eye(FEWEST, dtype=torch.float64))  # refuses a wrong setting before anything is trained
        self.score, self.detector = score, detector
        self.provides = frozenset({score, "suspect"})
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with the score and the suspects."""
        features = features_of(state.model, state.train, stage=name, channels_last=context.hardware.channels_last)
        scores, flagged = by_class(features, state.train.labels, self.detector)
        if not flagged.any():
            context.say(f"{name}: no row is flagged")
        return Outcome(
            replace(state, scores={**state.scores, self.score: scores}, groups={**state.groups, "suspect": flagged})
        )
