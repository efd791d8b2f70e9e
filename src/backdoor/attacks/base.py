"""The protocol of an attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from backdoor.attacks.plan import PoisonPlan
from backdoor.data.sources import DataSet
from backdoor.stages.base import Stage
from backdoor.state import Split, Truth
from backdoor.triggers.base import Shape


@dataclass(frozen=True)
class Means:
    """What an attack has besides the data.

    Attributes:
        seed: of its draws.
        cache_dir: for files that it decodes.
        findings: what its stages found.
        device: where triggers that are networks run; None = the CPU.
    """

    seed: int
    cache_dir: Path
    findings: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device | None = None


@dataclass(frozen=True)
class Poisoned:
    """What an attack hands on: a train set for the defender, the truth for the evaluator.

    Attributes:
        train: the suspicious train set.
        truth: for the evaluator alone.
        plan: rows, roles and new labels; None if the poison is somebody else's.
        checkpoint: a victim to load instead of training one.
        suspect: bool (N,), rows that an earlier isolation flagged.
        tensors: what the triggers paint with, by the names of their state_dicts; the run keeps it.
        setting: where the checkpoint comes from, for messages.
    """

    train: Split
    truth: Truth
    plan: PoisonPlan | None = None
    checkpoint: Path | None = None
    suspect: Tensor | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    setting: str = "attack.model"


class Attack(Protocol):
    """Changes the train set once.

    Attributes:
        name: shown in tables.
        inputs: what it gives the defense besides the train set: `model`, `suspect`.
        stages: name -> what the attacker makes on the clean train set before poisoning it: surrogates, patterns,
            encoders. A stage named `victim` trains the backdoored model itself (training-controlled attacks).
    """

    name: str
    inputs: frozenset[str]
    stages: Mapping[str, Stage]

    def check(self, num_classes: int | None, shape: Shape | None, labels: Tensor | None = None) -> None:
        """Refuse what does not fit K classes, images (C, H, W) or train labels (int64 (N,)).

        None: not known before the data are read; then it is called again, before anything is trained.

        Raises:
            UserError: a label map, a trigger or a ratio that does not fit.
        """
        ...

    def prepare(self, data: DataSet, train: Split, test: Split, means: Means) -> Poisoned:
        """Poison `train`, in place, and build the evaluator's truth."""
        ...
