"""What attacks share that control the victim's training: which rows of a batch change, and cover samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor

from backdoor.attacks.label_maps import TrueLabel
from backdoor.attacks.plan import PoisonGroup
from backdoor.checking.ranges import Count
from backdoor.data.loader import mix, to_float
from backdoor.errors import UserError
from backdoor.stages.fit import Contributor
from backdoor.state import Split, State
from backdoor.training.inference import evaluating
from backdoor.triggers.base import Trigger

# Far more than data sets have: a label map is asked about that many, before their number is known.
MANY_CLASSES = 10_000


def cover_group(poison: PoisonGroup, *, times: float, trigger: Trigger, setting: str) -> PoisonGroup:
    """The rows of the fixed train set that carry `trigger` and their true label, `times` as many as are poisoned.

    Args:
        poison: the group that gets the trigger itself.
        setting: where `times` comes from, for the error.

    Raises:
        UserError: a poison group that the attack's training cannot follow, or more rows than there are.
    """
    follows_batches(poison)
    if not 0 <= times < math.inf:
        raise UserError(f"{setting}={times}: expected a number of at least 0")
    asked = poison.ratio * (1 + times)
    if asked > 1:
        raise UserError(
            f"attack.ratio={poison.ratio} with {setting}={times:g}: asks for {asked:g} times all rows; "
            f"expected at most 1, so an attack.ratio of {1 / (1 + times):.4g} or less"
        )
    return PoisonGroup(poison.ratio * times, TrueLabel(), trigger, cover=True)


def follows_batches(poison: PoisonGroup) -> None:
    """Refuse what does not go with training that poisons the first rows of each batch, whatever their class.

    Raises:
        UserError: a pool, a base of the ratio or a label map that is about some classes or single rows.
    """
    reason = "this attack's training poisons the first rows of each batch, whatever their class"
    for setting, value, wanted in (("eligible", poison.eligible, "all"), ("ratio_of", poison.ratio_of, "train")):
        if value != wanted:
            raise UserError(f"attack.{setting}={value}: {reason}; use attack.{setting}={wanted}")
    classes = torch.arange(MANY_CLASSES)
    if not poison.label_map.eligible(classes, MANY_CLASSES).all():
        raise UserError(
            f"attack.label_map: {type(poison.label_map).__name__} poisons rows of some classes only, but {reason}; "
            "use label_map=all_to_one or label_map=all_to_all"
        )
    if poison.label_map.by_row:
        raise UserError(
            f"attack.label_map: {type(poison.label_map).__name__} draws a label for each row once, but {reason}; "
            "use label_map=all_to_one or label_map=all_to_all"
        )


def count_of(share: float, generator: torch.Generator) -> int:
    """How many rows of a batch change: floor(share), and where that is 0 a draw with the same expectation.

    Args:
        share: ratio * batch size, at least 0.
    """
    if share >= 1:
        return math.floor(share)
    return int(torch.rand((), generator=generator) < share)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The draws of one epoch, on the CPU: a fit that resumes at this epoch draws what an undisturbed one would."""
    return torch.Generator().manual_seed(mix(seed, epoch, 0xC0))


def some_rows(total: int, count: int, seed: int) -> Tensor:
    """int64: at most `count` of `total` positions, drawn without replacement."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(mix(seed, 0xC1)))[:count]


@runtime_checkable
class Covers(Protocol):
    """A training module that can show cover samples."""

    def cover(self, images: Tensor, rows: Tensor) -> Tensor:
        """Float [0, 1] (B, C, H, W) with a trigger that must not work on them; `rows` int64 (B,) seeds its draws."""
        ...


class CrossAccuracy(Contributor):
    """Measures, on train images after training, how many cover samples get their TRUE label.

    That is the papers' "cross accuracy" (Input-aware: another image's trigger; WaNet: noise mode), though on train
    images: the attacker has no test set here.

    Args:
        images: at most so many, drawn once.
        batch_size: of the pass.
    """

    provides: Sequence[str] = ("cross_accuracy",)

    def __init__(self, *, images: Count = 1000, batch_size: Count = 64) -> None:
        if images < 1:
            raise UserError(f"callbacks.cross.images={images}: expected at least 1")
        self.images, self.batch_size = images, batch_size
        self.found = 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure."""
        state: State = pl_module.state  # type: ignore[assignment]
        cap = trainer.limit_train_batches  # of trainer.max_batches; else 1.0
        images = min(self.images, cap * self.batch_size) if isinstance(cap, int) else self.images
        rows = some_rows(len(state.train), images, 0)
        right = 0
        with evaluating(pl_module):
            for some in rows.split(self.batch_size):
                right += self.count(pl_module, state.train, some)
        self.found = right / len(rows)

    @staticmethod
    def count(module: pl.LightningModule, train: Split, rows: Tensor) -> int:
        """How many of these rows, as cover samples, are classified rightly."""
        assert isinstance(module, Covers)
        images = to_float(train.images[rows.to(train.images.device)].to(module.device))
        found = module(module.cover(images, rows)).argmax(1).cpu()
        return int((found == train.labels[rows]).sum())

    def contribute(self, state: State) -> State:
        """Adds the finding `cross_accuracy`, in [0, 1]."""
        return replace(state, findings={**state.findings, "cross_accuracy": self.found})
