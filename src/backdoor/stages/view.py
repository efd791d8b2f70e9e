"""What a stage is handed: the state reduced to what it declares, so that no key can be too small."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from backdoor.errors import UserError
from backdoor.stages.base import Stage
from backdoor.state import State
from backdoor.training.context import RunContext

PARTS = ("scores", "groups", "findings")


class Declared(dict[str, Any]):
    """Scores, groups or findings that a stage requires; reading another one that is there is refused.

    Args:
        values: all that there are.
        requires: names that the stage declares.
        stage: its name, for the message.
    """

    def __init__(self, values: Mapping[str, Any], requires: Collection[str], stage: str) -> None:
        super().__init__({name: value for name, value in values.items() if name in requires})
        self.hidden, self.stage = frozenset(values) - set(requires), stage

    def __missing__(self, name: str) -> Any:
        """Raises UserError for what is there and hidden, KeyError for what is not there at all."""
        if name in self.hidden:
            raise UserError(
                f"stage {self.stage}: reads {name}, which it does not declare, so its artifact would not change with "
                f"{name}; add {name} to its `requires`"
            )
        raise KeyError(name)


def shown(state: State, stage: Stage, name: str) -> State:
    """The state with no more than the stage declares in `requires` and `reads`.

    `model` and `reserved` are None, other scores, groups and findings refused (see `Declared`), and where it `reads`
    images alone, every label of the train set is 0.
    """
    requires = stage.requires
    alone = {part: getattr(state, part) if part in requires else None for part in ("model", "reserved")}
    named = {part: Declared(getattr(state, part), requires, name) for part in PARTS}
    reduced: State = replace(state, **alone, **named)  # type: ignore[arg-type]
    return reduced.without_labels() if stage.reads == "images" else reduced


def merged(state: State, end: State, provides: Collection[str]) -> State:
    """The whole `state` with what a stage that ended with `end` provides, and nothing else of it."""

    def whole(part: str) -> dict[str, Any]:
        own = {name: value for name, value in getattr(end, part).items() if name in provides}
        return {**getattr(state, part), **own}

    model = end.model if "model" in provides else state.model
    return replace(state, model=model, **{part: whole(part) for part in PARTS})  # type: ignore[arg-type]


def context_for(context: RunContext, stage: Stage, name: str) -> RunContext:
    """What the stage may use: no model of the run, if it says that it makes no use of one."""
    if "model" not in stage.ignores:
        return context

    def refuse() -> nn.Module:
        raise UserError(f"stage {name}: makes a model of the run, which it `ignores`; take model out of its `ignores`")

    return replace(context, new_model=refuse)
