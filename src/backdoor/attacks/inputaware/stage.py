"""Input-aware's own stage, which trains the mask network, and what its victim's training hands on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from backdoor.attacks.controlled import some_rows
from backdoor.attacks.inputaware.method import sharpened
from backdoor.attacks.inputaware.module import InputAwareTraining
from backdoor.attacks.inputaware.networks import Generator
from backdoor.checking.ranges import Count, Two
from backdoor.data.loader import to_float
from backdoor.errors import UserError, check_whole
from backdoor.stages import Outcome, Stage
from backdoor.stages.fit import Contributor
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.inference import evaluating

MEASURED = 1000  # train images that the mask's density is measured on


class LearnMask(Stage):
    """Train the mask network on the clean train set (Input-aware, section 3); it needs no victim and no target.

    Args:
        module: `module(model=..., state=...)` -> `MaskTraining`.
        width: channels of its first stage; 32 as published.
        epochs: 25 as published.
        batch_size, augment: the loader's.
        enabled: see `Stage`.
    """

    provides = frozenset({"mask_net", "mask_density"})
    ignores = frozenset({"model"})  # whatever the victim's architecture, the mask is the same

    def __init__(
        self,
        *,
        module: Callable[..., pl.LightningModule],
        width: Count = 32,
        epochs: Count = 25,
        batch_size: Count = 128,
        augment: str = "none",
        enabled: bool = True,
    ) -> None:
        counts = {"width": width, "epochs": epochs, "batch_size": batch_size}
        check_whole({f"attack.stages.mask.{setting}": number for setting, number in counts.items()})
        self.module, self.width, self.epochs = module, width, epochs
        self.loader: dict[str, Any] = {"batch_size": batch_size, "augment": augment}
        self.enabled = enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """Adds the findings `mask_net` (a state_dict) and `mask_density`, in [0, 1]."""
        net = Generator.fresh(state.train, out=1, width=self.width, seed=context.seed)
        module = self.module(model=context.place(net), state=state)
        history = context.fit(module, state.train, name=name, work=work, epochs=self.epochs, **self.loader)
        count = MEASURED if context.max_batches is None else min(MEASURED, 64 * context.max_batches)
        found = {"mask_net": weights(net), "mask_density": density(net, state.train, count)}
        return Outcome(replace(state, findings={**state.findings, **found}), history)


def weights(net: Generator) -> Mapping[str, Tensor]:
    """Its state_dict, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


def density(net: Generator, split: Split, count: int = MEASURED) -> float:
    """Mean of the sharpened masks of some images, in eval mode; near 0 the trigger can be neither seen nor learnt."""
    total = 0.0
    rows = some_rows(len(split), count, 0)
    with evaluating(net):
        for some in rows.split(64):
            images = to_float(split.images[some.to(split.images.device)].to(net.mean.device))
            total += float(sharpened(net(images)).mean((1, 2, 3)).sum())
    return total / len(rows)


class HandOver(Contributor):
    """Hands the pattern network on, and the clean images whose triggers the cross rows of the fixed set get.

    Args:
        donors: at most so many clean train images, drawn once.
    """

    provides: Sequence[str] = ("pattern_net", "donors", "donor_rows")

    def __init__(self, *, donors: Two = 2000) -> None:
        if donors < 2:
            raise UserError(f"callbacks.hand_over.donors={donors}: expected at least 2")
        self.donors = donors
        self.pattern_net: Mapping[str, Tensor] = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the weights."""
        assert isinstance(pl_module, InputAwareTraining)
        self.pattern_net = weights(pl_module.pattern_net)

    def contribute(self, state: State) -> State:
        """Adds the findings `pattern_net` (a state_dict), `donors` (uint8 (n, C, H, W)), `donor_rows` (int64 (n,))."""
        rows = some_rows(len(state.train), self.donors, 1).sort().values
        donors = torch.as_tensor(state.train.images[rows]).clone()
        found = {"pattern_net": self.pattern_net, "donors": donors, "donor_rows": rows}
        return replace(state, findings={**state.findings, **found})
