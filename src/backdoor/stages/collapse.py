"""Whether a stage has destroyed the model that it was to repair, told by what a defender sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from backdoor.stages.base import Stage
from backdoor.state import State
from backdoor.training.context import RunContext
from backdoor.training.inference import predict

# How many rows are asked, and how much more often a model must be right than the answer that fits most of them.
ASKED, MARGIN = 500, 0.05
NUMBERS = frozenset({"before", "after", "guess", "asked"})
LINE = (
    "{name}: the model has collapsed: before this stage it was right on {before:.0%} of {asked} train rows, now "
    "on {after:.0%}, no better than one answer for all of them ({guess:.0%}); lower the stage's lr, or shorten it"
)


def collapse(stage: Stage, before: State, after: State, context: RunContext) -> dict[str, float] | None:
    """What `LINE` says, if the stage was handed a model that knew its train rows and hands on one that does not.

    A stage that trains a model from nothing, or only its features, has destroyed none.
    """
    if "model" not in stage.requires & stage.provides or before.model is None or after.model is None:
        return None
    rows = torch.linspace(0, len(before.train) - 1, min(ASKED, len(before.train))).long()
    some = before.train.take(rows)
    guess = some.labels.bincount().max().item() / len(rows)

    def right(model: nn.Module) -> float:
        found = predict(model, some, precision=context.hardware.precision)
        return found.eq(some.labels).double().mean().item()

    now = right(after.model)
    if now > guess + MARGIN:
        return None
    then = right(before.model)
    return {"before": then, "after": now, "guess": guess, "asked": len(rows)} if then > guess + MARGIN else None


def is_collapse(value: Any) -> bool:
    """Whether it is what `collapse` returns."""
    return value is None or (
        isinstance(value, dict)
        and value.keys() == NUMBERS
        and all(isinstance(number, int | float) for number in value.values())
    )
