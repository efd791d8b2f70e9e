"""The stage that reverses a trigger for every class and judges the model by their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from backdoor.checking.expectations import PassedTo
from backdoor.checking.ranges import Positive
from backdoor.data.loader import mix, to_float
from backdoor.defenses.nc.figure import draw_triggers
from backdoor.defenses.nc.method import anomaly_indices, deviations, outliers
from backdoor.defenses.nc.search import Reversed, Search, reverse_triggers
from backdoor.errors import UserError
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.gradients import Forward, fixed, in_precision

# Sets the search apart from other draws of a run.
SEARCH = 0x9C0


class Invert(Stage):
    """Reverses the smallest trigger towards each class; a class with a far smaller one than the others is a target.

    Works for any module from [0, 1] images to logits (B, K) that is differentiable by its images.

    Args:
        threshold: of the anomaly index; 2 in the paper.
        floor: least MAD in pixels (see `anomaly_indices`); ours, 0 in the paper.
        control, enabled: see `Stage`.
        search: see `Search`.

    Provides:
        masks: float32 [0, 1] (K, 1, H, W).
        patterns: float32 [0, 1] (K, C, H, W).
        norms: float32 (K,), of the masks, in pixels; H * W where no mask sent enough images to the class.
        success: float32 (K,), share of the trusted images that the trigger sends to its class.
        anomaly_indices: float64 (K,).
        flagged_classes: list, the most anomalous first.
        backdoored: 1 if a class is flagged, else 0.
        anomaly_index: the largest among the classes whose norm is not above the median, on which the verdict rests.
    """

    requires = frozenset({"model", "reserved"})
    provides = frozenset(
        {"masks", "patterns", "norms", "success"}
        | {"anomaly_indices", "flagged_classes", "backdoored", "anomaly_index"}
    )

    def __init__(
        self,
        *,
        threshold: Positive = 2.0,
        floor: Positive = 1.0,
        control: bool = False,
        enabled: bool = True,
        **search: Annotated[Any, PassedTo(Search)],
    ) -> None:
        for setting, value in (("threshold", threshold), ("floor", floor)):
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise UserError(f"{setting}={value}: expected a number above 0")
        self.threshold, self.floor = float(threshold), float(floor)
        self.search = Search(**search)
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with a trigger a class and the verdict; the model is the one that came."""
        model, reserved = state.model, state.reserved
        assert model is not None  # the pipeline checked `requires`
        assert reserved is not None
        with fixed(model):
            forward = in_precision(in_layout(model, context), context.hardware)
            check_model(forward, reserved, state.num_classes, context, name)
            found = self.reverse(forward, reserved, state.num_classes, context, name)
        findings = self.judge(found)
        for line in self.verdict(findings, found, self.search.success):
            context.say(line)
        return Outcome(replace(state, findings={**state.findings, **findings}))

    def reverse(self, forward: Forward, reserved: Split, classes: int, context: RunContext, name: str) -> Reversed:
        """The search, under the caps of `trainer=debug`; its tensors on the CPU."""
        epochs = min(self.search.epochs, context.max_epochs or self.search.epochs)
        try:
            found = reverse_triggers(
                forward,
                reserved.images.to(context.hardware.device),
                torch.arange(classes),
                replace(self.search, epochs=epochs),
                seed=mix(context.seed, SEARCH),
                batches=context.max_batches,
            )
        except FloatingPointError as error:
            hint = "lower its lr, set trainer.precision=fp32, or see whether the model itself gives numbers"
            raise UserError(f"stage {name}: {error}; {hint}") from None
        return Reversed(*(part.detach().cpu() for part in found))

    def judge(self, found: Reversed) -> dict[str, Any]:
        """The findings."""
        indices = anomaly_indices(found.norms, floor=self.floor)
        flagged = outliers(found.norms, threshold=self.threshold, floor=self.floor)
        small = found.norms.double() <= found.norms.double().quantile(0.5)
        return {
            "masks": found.masks,
            "patterns": found.patterns,
            "norms": found.norms,
            "success": found.success,
            "anomaly_indices": indices,
            "flagged_classes": flagged,
            "backdoored": int(bool(flagged)),
            "anomaly_index": float(indices[small].max()),
        }

    def verdict(self, findings: dict[str, Any], found: Reversed, wanted: float) -> list[str]:
        """What is said on the screen: the verdict, and what weakens it."""
        flagged, indices, classes = findings["flagged_classes"], findings["anomaly_indices"], len(found.norms)
        named = [f"class {one} (anomaly index {indices[one]:.1f})" for one in flagged]
        no = f"no (largest anomaly index of a small trigger {findings['anomaly_index']:.1f})"
        lines = [f"backdoored: {'yes, ' + ', '.join(named) if flagged else no}"]
        if classes < 3:
            lines.append(f"{classes} classes are too few for an anomaly index (3 at least): no verdict can be had")
        elif deviations(found.norms)[1] < self.floor:
            lines.append(f"the norms' MAD is under {self.floor:g} pixels, which it then counts as")
        missed = found.success < wanted
        lost, open_ = int(missed.sum()), int((missed | found.shrinking).sum())
        if lost:
            lines.append(
                f"for {lost} of {classes} classes no trigger reached {wanted:.0%}: their norm is a whole mask's"
            )
        if 2 * open_ > classes:
            lines.append(
                f"the search ended early: {open_} of {classes} classes have no trigger yet, or one that still shrank "
                "in the last pass; the verdict may change with more passes (epochs) or steps (a smaller batch_size)"
            )
        return lines

    def figures(self, state: State, folder: Path, name: str, entry: Mapping[str, Any]) -> list[Path]:
        """Mask, pattern and their product of every class."""
        found = state.findings
        path = folder / f"{name}_triggers.png"
        drawn = [found[key] for key in ("masks", "patterns", "norms", "anomaly_indices", "flagged_classes")]
        return [draw_triggers(*drawn, path=path)]


def in_layout(model: nn.Module, context: RunContext) -> Forward:
    """The model on images in the run's memory layout."""
    layout = torch.channels_last if context.hardware.channels_last else torch.contiguous_format

    def forward(images: Tensor) -> Tensor:
        return model(images.contiguous(memory_format=layout))

    return forward


def check_model(forward: Forward, reserved: Split, classes: int, context: RunContext, name: str) -> None:
    """Raises UserError unless the model gives K logits an image that can be differentiated by the image."""
    probe = to_float(reserved.images[:1].to(context.hardware.device)).requires_grad_()
    logits = forward(probe)
    if logits.ndim != 2 or logits.shape != (1, classes):
        raise UserError(
            f"stage {name}: expected a model from [0, 1] images to logits (B, {classes}), got {tuple(logits.shape)} "
            "for one image"
        )
    if not logits.requires_grad:
        raise UserError(
            f"stage {name}: expected a model that can be differentiated by its images; this one rounds them or "
            "computes without gradients"
        )
