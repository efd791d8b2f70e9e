"""The stage that finds the smooth pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from backdoor.attacks.lf.method import smooth_pattern
from backdoor.checking.ranges import Count, NotNegative, SomeLevels, SomeShare
from backdoor.data.loader import mix, to_float
from backdoor.errors import UserError, check_whole
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.gradients import capped, fixed, in_precision, sample
from backdoor.training.inference import predict
from backdoor.triggers.additive import Additive


class SmoothPattern(Stage):
    """Optimises one low-frequency pattern that moves the surrogate's train images to the target class.

    Args:
        target: the class.
        bound: largest absolute value of the pattern, in levels.
        band: share of the DCT frequencies of each axis that may be used, in (0, 1].
        steps, batch_size, lr: of Adam, lr in levels; `trainer=debug` caps the steps.
        penalty: weight of the pattern's mean square, relative to the bound.
        measured: train images of other classes on which the fooling rate is measured, at most.
        control, enabled: see `Stage`.

    Provides:
        pattern: float32 (C, H, W), levels in [-bound, bound].
        fooling_rate, fooling_rate_before: share of those images that the surrogate takes for the target class, with
            the trigger (rounded like a file) and without.
    """

    requires = frozenset({"model"})
    provides = frozenset({"pattern", "fooling_rate", "fooling_rate_before"})

    def __init__(
        self,
        *,
        target: int,
        bound: SomeLevels = 16,
        band: SomeShare = 0.25,
        steps: Count = 300,
        batch_size: Count = 128,
        lr: SomeLevels = 1.0,
        penalty: NotNegative = 0.0,
        measured: Count = 5000,
        control: bool = False,
        enabled: bool = True,
    ) -> None:
        for setting, value, high in (("bound", bound, 255), ("band", band, 1), ("lr", lr, 255)):
            if not isinstance(value, int | float) or not 0 < value <= high:
                raise UserError(f"{setting}={value}: expected a number above 0 and up to {high}")
        if not isinstance(penalty, int | float) or penalty < 0:
            raise UserError(f"penalty={penalty}: expected a number of at least 0")
        check_whole({"steps": steps, "batch_size": batch_size, "measured": measured})
        self.target, self.steps, self.batch_size, self.measured = target, steps, batch_size, measured
        self.search = {"bound": bound, "band": band, "lr": lr, "penalty": penalty}
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with the pattern."""
        model, train = state.model, state.train
        assert model is not None  # the pipeline checked `requires`
        channels, height, width = train.images.shape[1:]
        with fixed(model):
            pattern = smooth_pattern(
                in_precision(model, context.hardware),
                self.batches(train, context),
                shape=(channels, height, width),
                target=self.target,
                **self.search,
            ).cpu()
        shown = sample(train, self.measured, context.seed, without=self.target)
        triggered = Split(Additive().equip({"pattern": pattern})(shown.images), shown.labels, shown.index)
        before, after = (
            float(predict(model, split, channels_last=context.hardware.channels_last).eq(self.target).float().mean())
            for split in (shown, triggered)
        )
        found = {"pattern": pattern, "fooling_rate": after, "fooling_rate_before": before}
        return Outcome(replace(state, findings={**state.findings, **found}))

    def batches(self, train: Split, context: RunContext) -> Iterator[Tensor]:
        """A seeded draw of train images for each step, of all classes, on the device."""
        hardware, generator = context.hardware, torch.Generator().manual_seed(mix(context.seed, 0x1F))
        for _ in range(capped(self.steps, context)):
            rows = torch.randint(len(train), (self.batch_size,), generator=generator)
            yield to_float(train.images[rows].to(hardware.device), channels_last=hardware.channels_last)
