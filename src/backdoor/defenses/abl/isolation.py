"""Isolation: the rows with the lowest loss after a few epochs are the ones that were learnt first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from backdoor.checking.ranges import Count, ProperShare
from backdoor.defenses.abl.method import lowest_rows
from backdoor.errors import UserError, suggest
from backdoor.stages.fit import Contributor
from backdoor.state import State
from backdoor.training.inference import reestimate_batchnorm, sample_losses

COMBINE = {"mean": lambda passes: passes.mean(0), "median": lambda passes: passes.median(0).values}


class LossGapIsolation(Contributor):
    """Ranks the train set by its loss and flags the lowest share as `suspect` (ABL, section 3).

    The ranking combines one pass at the end of each of the last epochs, in eval mode, fp32, without augmentation: a
    single epoch's ranking swings with BatchNorm's noise (see the README of this folder).

    Args:
        ratio: share of the train set that is isolated; the paper's is 0.01.
        last_epochs: passes that are combined; the authors' code uses the last one alone.
        combine: `mean`, or `median`, which one epoch of BatchNorm's noise cannot move: for small data sets.
        reestimate_bn: re-estimate BatchNorm's statistics (on a copy of the model) before each pass.
    """

    provides: Sequence[str] = ("suspect", "loss_gap")

    def __init__(
        self, *, ratio: ProperShare = 0.01, last_epochs: Count = 3, combine: str = "mean", reestimate_bn: bool = False
    ) -> None:
        if last_epochs < 1:
            raise UserError(f"last_epochs={last_epochs}: expected at least 1")
        if combine not in COMBINE:
            raise UserError(f"combine={combine}: {suggest(combine, COMBINE)}")
        lowest_rows(torch.zeros(2), ratio)  # refuses a bad ratio before anything trains
        self.ratio, self.last_epochs = ratio, last_epochs
        self.combine, self.reestimate_bn = combine, reestimate_bn
        self.passes: list[Tensor] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score the train set if this is one of the last epochs."""
        epochs = int(trainer.max_epochs or 1)
        if trainer.current_epoch < epochs - self.last_epochs:
            return
        state: State = pl_module.state  # type: ignore[assignment]
        self.passes.append(self.score(pl_module.model, state))  # type: ignore[arg-type]

    def score(self, model: nn.Module, state: State) -> Tensor:
        """float32 (N,): one pass of losses."""
        if self.reestimate_bn:
            model = copy.deepcopy(model)
            reestimate_batchnorm(model, state.train)
        return sample_losses(model, state.train)

    def contribute(self, state: State) -> State:
        """Adds the score `loss_gap` (minus the combined loss) and the group `suspect`."""
        losses = COMBINE[self.combine](torch.stack(self.passes))
        if not torch.isfinite(losses).all():
            raise UserError("stage isolate: losses are no numbers; lower its lr, or set trainer.precision=fp32")
        if len(losses) > 1 and bool(losses.eq(losses[0]).all()):
            raise UserError(
                "stage isolate: all losses are equal, so no row was learnt before another; train it longer, or with "
                "a lower lr"
            )
        return replace(
            state,
            scores={**state.scores, "loss_gap": -losses},
            groups={**state.groups, "suspect": lowest_rows(losses, self.ratio)},
        )

    def state_dict(self) -> dict[str, Any]:
        """The passes so far."""
        return {"passes": self.passes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the passes of a killed fit."""
        self.passes = list(state_dict["passes"])
