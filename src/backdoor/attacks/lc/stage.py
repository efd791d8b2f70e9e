"""The stage that perturbs the target class's train images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from backdoor.attacks.lc.method import check_ball, pgd, to_pixels
from backdoor.checking.ranges import Count, SomeLevels
from backdoor.data.loader import to_float
from backdoor.errors import UserError, check_whole
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.gradients import capped, fixed, in_precision
from backdoor.training.inference import predict


class Perturb(Stage):
    """PGD against the surrogate on every train image of the target class (Turner et al. 2019).

    All of the class is perturbed, so that runs with other ratios and other draws share the artifact.

    Args:
        target: the class.
        eps, step: radius of the L_inf ball and step, in levels.
        steps: PGD steps; `trainer=debug` caps them.
        batch_size: images at once; the result does not depend on it.
        control, enabled: see `Stage`.

    Provides:
        perturbed: {"images": uint8 (n, C, H, W), "index": int64 (n,), ascending}.
        recognised_before, recognised_after: share of these images in which the surrogate sees the class.
    """

    requires = frozenset({"model"})
    provides = frozenset({"perturbed", "recognised_before", "recognised_after"})

    def __init__(
        self,
        *,
        target: int,
        eps: SomeLevels = 16,
        step: SomeLevels = 1.5,
        steps: Count = 100,
        batch_size: Count = 256,
        control: bool = False,
        enabled: bool = True,
    ) -> None:
        check_ball(eps, step, steps)
        check_whole({"batch_size": batch_size})
        self.target, self.eps, self.step, self.steps = target, eps, step, steps
        self.batch_size = batch_size
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with the perturbed images."""
        model, train = state.model, state.train
        assert model is not None  # the pipeline checked `requires`
        rows = train.labels.eq(self.target).nonzero().flatten()
        if len(rows) == 0:
            raise UserError(f"stage {name}: no train image of class {self.target} to perturb; choose another target")
        clean = train.take(rows[train.index[rows].argsort()])
        context.say(f"{name}: PGD on {len(clean):,} images of class {self.target}")
        perturbed = self.perturb(clean, model, context)
        shares = {
            when: float(
                predict(model, split, channels_last=context.hardware.channels_last).eq(self.target).float().mean()
            )
            for when, split in (("before", clean), ("after", perturbed))
        }
        found = {
            "perturbed": {"images": perturbed.images, "index": perturbed.index},
            "recognised_before": shares["before"],
            "recognised_after": shares["after"],
        }
        return Outcome(replace(state, findings={**state.findings, **found}))

    def perturb(self, clean: Split, model: torch.nn.Module, context: RunContext) -> Split:
        """The perturbed images, on the CPU, with their labels and index."""
        hardware, steps = context.hardware, capped(self.steps, context)
        images = torch.empty_like(clean.images)
        with fixed(model):
            forward = in_precision(model, hardware)
            for rows in torch.arange(len(clean)).split(self.batch_size):
                pixels = clean.images[rows].to(hardware.device)
                start = to_float(pixels, channels_last=hardware.channels_last)
                labels = clean.labels[rows].to(hardware.device)
                moved = pgd(forward, start, labels, eps=self.eps / 255, step=self.step / 255, steps=steps)
                images[rows] = to_pixels(moved, pixels, self.eps).cpu()
        return Split(images, clean.labels, clean.index)
