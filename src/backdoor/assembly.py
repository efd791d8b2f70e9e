"""The pieces that a run is put together from: stages of a config, facts of the data, digests."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from backdoor.attacks import Poisoned
from backdoor.context import RunContext
from backdoor.data.sources import DataSet
from backdoor.digest import split_digest
from backdoor.errors import UserError
from backdoor.stages import Step
from backdoor.state import State
from backdoor.store import fingerprint


def model_facts(data: DataSet) -> dict[str, Any]:
    """What a model must know of the data."""
    channels, height, _ = data.shape
    return {
        "num_classes": data.num_classes,
        "in_channels": channels,
        "image_size": height,
        "mean": list(data.mean),
        "std": list(data.std),
    }


class Given:
    """The user's own model as the first row of the table: nothing is trained."""

    requires: frozenset[str] = frozenset()
    provides = frozenset({"model"})
    control, enabled = False, True

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Any:
        """The state as it is."""
        return replace(state)


def steps_of(stages: Mapping[str, Any]) -> list[Step]:
    """The enabled stages of a config, in its order."""
    steps = []
    for name, node in stages.items():
        if not node.get("enabled", True):
            continue
        if "_target_" not in node:
            raise UserError(f"defense.stages.{name}: has no _target_; is the name misspelt?")
        resolved = OmegaConf.to_container(node, resolve=True)
        try:
            steps.append(Step(name, instantiate(node, _convert_="all"), resolved))
        except Exception as error:
            cause = error.__cause__
            if isinstance(cause, UserError):
                where = "victim" if name == "victim" else f"defense.stages.{name}"
                raise UserError(f"{where}: {cause}") from None
            raise
    return steps


def train_digest(poisoned: Poisoned, data: DataSet) -> str:
    """Identifies the suspicious train set by the clean data's digest and what was changed of it."""
    train, plan = poisoned.train, poisoned.plan
    rows = torch.arange(len(train)) if plan is None else plan.rows
    base = "external" if plan is None else data.train.digest
    return fingerprint([data.num_classes, split_digest(train, rows, base=base)])


def quieten() -> None:
    """Lightning's hints that do not apply here: the loader needs no workers, and it has its own sampler."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`training_step` returned `None`.*")
    warnings.filterwarnings("ignore", module="pytorch_lightning")
