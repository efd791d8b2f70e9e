"""The line between attacker and defender: the state that a defense begins with, and the digests of what is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backdoor.attacks import Poisoned
from backdoor.data.sources import DataSet
from backdoor.experiment.attacker import Crafted
from backdoor.stages import Stage
from backdoor.state import Split, State
from backdoor.store.digest import file_digest, split_digest, tensor_digest
from backdoor.store.store import fingerprint
from backdoor.store.weights import load_weights
from backdoor.training.context import RunContext


def first_state(
    poisoned: Poisoned, reserved: Split | None, crafted: Crafted, data: DataSet, context: RunContext
) -> tuple[State, dict[str, str]]:
    """The defender's first state and the digests of what is in it."""
    model, keys = None, train_keys(poisoned, data)
    if reserved is not None:
        keys["reserved"] = tensor_digest(reserved.index, reserved.labels)
    if poisoned.checkpoint is not None:
        model = context.make_model()
        load_weights(model, poisoned.checkpoint, setting=poisoned.setting)
        model = context.place(model)
        keys["model"] = file_digest(poisoned.checkpoint)
    if crafted.victim is not None:
        model, keys["model"] = crafted.victim.state.model, crafted.victim.key
    groups = {}
    if poisoned.suspect is not None:
        groups["suspect"] = poisoned.suspect
        keys["suspect"] = tensor_digest(poisoned.suspect)
    return State(poisoned.train, data.num_classes, reserved, model, groups=groups), keys


def train_keys(poisoned: Poisoned, data: DataSet) -> dict[str, str]:
    """Digests of the suspicious `train` set and of its `images` alone: the clean data's and what was changed of it."""
    train, plan = poisoned.train, poisoned.plan
    rows = torch.arange(len(train)) if plan is None else plan.rows
    base = "external" if plan is None else data.train.digest
    kinds = {"train": True, "images": False}
    return {
        name: fingerprint([data.num_classes, split_digest(train, rows, base=base, labels=labels)])
        for name, labels in kinds.items()
    }


class Given(Stage):
    """The user's own model as the first row of the table: nothing is trained."""

    provides = frozenset({"model"})

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Any:
        """The state as it is."""
        return replace(state)
