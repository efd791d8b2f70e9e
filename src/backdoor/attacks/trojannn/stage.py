"""The stage that optimises the trigger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from backdoor.attacks.trojannn.mask import Mask
from backdoor.attacks.trojannn.method import excite, strongest_neurons
from backdoor.checking.ranges import Count, Number, SomeLevels
from backdoor.errors import UserError, check_whole
from backdoor.models.base import ImageClassifier, Penultimate
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.gradients import capped, fixed, in_precision, sample
from backdoor.training.inference import map_split
from backdoor.triggers.additive import Additive


class ExciteNeurons(Stage):
    """Picks the penultimate neurons with the strongest links to the classes and makes a trigger that excites them.

    Args:
        mask: where the trigger may be.
        neurons: how many; 2 in BackdoorBench.
        goal: activation to be reached; 100 in the paper and in BackdoorBench, which trained features hardly reach.
        start, bound, step: first level of the mask, how far a pixel may go from it, and levels a step.
        steps: at most; `trainer=debug` caps them.
        measured: train images on which the activation is measured, at most.
        control, enabled: see `Stage`.

    Provides:
        pattern: float32 (C, H, W), whole levels in 0..255, 0 outside the mask.
        neurons: their numbers, the strongest first.
        activation_before, activation_after: mean activation on train images without and with the trigger.
        activation_alone: mean activation on the trigger alone, which is what is optimised.
    """

    requires = frozenset({"model"})
    provides = frozenset({"pattern", "neurons", "activation_before", "activation_after", "activation_alone"})

    def __init__(
        self,
        *,
        mask: Mask,
        neurons: Count = 2,
        goal: Number = 100,
        start: SomeLevels = 128,
        bound: SomeLevels = 76.5,
        step: SomeLevels = 2.55,
        steps: Count = 1000,
        measured: Count = 1000,
        control: bool = False,
        enabled: bool = True,
    ) -> None:
        check_whole({"neurons": neurons, "steps": steps, "measured": measured})
        for setting, value in (("start", start), ("bound", bound), ("step", step)):
            if not isinstance(value, int | float) or not 0 < value <= 255:
                raise UserError(f"{setting}={value}: expected levels above 0 and up to 255")
        self.mask, self.neurons, self.measured, self.steps = mask, neurons, measured, steps
        self.search = {"target": float(goal), "start": start, "bound": bound, "step": step}
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with the trigger's pattern."""
        model, shape = state.model, cast(tuple[int, int, int], tuple(state.train.images.shape[1:]))
        if not isinstance(model, ImageClassifier):
            raise UserError(
                f"stage {name}: expected a model with features and a linear head, got {type(model).__name__}"
            )
        width = model.head.in_features
        if self.neurons > width:
            raise UserError(f"neurons={self.neurons}: expected at most {width}, the width of the model's features")
        chosen = strongest_neurons(model.head.weight, self.neurons)
        part = Penultimate(model, chosen.to(context.hardware.device))
        with fixed(part):
            mask = self.mask.draw(shape).to(context.hardware.device)
            search = in_precision(part, context.hardware)
            steps = capped(self.steps, context)
            pattern = excite(search, mask, channels=shape[0], steps=steps, **self.search).cpu()
        found = {"pattern": pattern, "neurons": chosen.tolist(), **self.measure(part, pattern, state.train, context)}
        return Outcome(replace(state, findings={**state.findings, **found}))

    def measure(self, part: nn.Module, pattern: Tensor, train: Split, context: RunContext) -> dict[str, float]:
        """Mean activations in fp32, of images rounded like files."""
        shown = sample(train, self.measured, context.seed)
        trigger = Additive().equip({"pattern": pattern})
        black = torch.zeros(1, *shown.images.shape[1:], dtype=torch.uint8)
        seen = {
            "activation_before": shown,
            "activation_after": Split(trigger(shown.images), shown.labels, shown.index),
            "activation_alone": Split.of(trigger(black), torch.zeros(1, dtype=torch.int64)),
        }
        return {
            key: float(
                map_split(
                    part, split, lambda values, labels: values, channels_last=context.hardware.channels_last
                ).mean()
            )
            for key, split in seen.items()
        }
