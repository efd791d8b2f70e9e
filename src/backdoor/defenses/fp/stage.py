"""The stage that prunes dormant channels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backdoor.checking.ranges import BelowOne, ProperShare
from backdoor.data.loader import to_float
from backdoor.defenses.fp.method import dormant_first, last_accepted, pruning_levels
from backdoor.defenses.fp.replay import Activations, Levels
from backdoor.defenses.fp.unit import Unit, find_unit, prune_channels
from backdoor.defenses.pruning import (
    check_drop,
    check_share,
    hold_out,
    lowest_accepted,
    pruning_figure,
    rows_for,
    rows_to_hold_out,
)
from backdoor.errors import UserError
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.gradients import capped
from backdoor.training.inference import map_split


class PruneDormant(Stage):
    """Prunes the channels of the last convolution that clean images excite least (Fine-Pruning, section 4.1).

    Args:
        max_drop: clean accuracy that may be lost; 0.04 in the paper.
        drop: `absolute` (points, the paper) or `relative` (to the accuracy before; BackdoorBench, with 0.1).
        step: share of the channels that is pruned between two measurements, rounded up; 0.01 in BackdoorBench.
        validation: share of `reserved` that accuracy is measured on; activations are recorded on the rest.
        control, enabled: see `Stage`.

    Provides:
        model: the pruned weights.
        kept_channels: parameter name -> bool (C,), False where it is pruned.
        channel_activation: float32 (C,), the mean activation on clean images.
        pruned_channels, pruned_share: how many, and of all.
        pruning_curve: see `pruning_figure`; `x` is the share that is pruned.

    Raises:
        UserError: a setting out of range.
    """

    requires = frozenset({"model", "reserved"})
    provides = frozenset(
        {"model", "kept_channels", "channel_activation", "pruned_channels", "pruned_share", "pruning_curve"}
    )

    def __init__(
        self,
        *,
        max_drop: BelowOne = 0.04,
        drop: str = "absolute",
        step: ProperShare = 0.01,
        validation: ProperShare = 0.5,
        control: bool = False,
        enabled: bool = True,
    ) -> None:
        check_drop(max_drop, drop)
        check_share("step", step)
        check_share("validation", validation)
        self.max_drop, self.drop, self.step, self.validation = max_drop, drop, step, validation
        self.least = rows_for(max_drop)  # to be held out
        self.reserved_rows = rows_to_hold_out(validation, self.least)
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with the pruned model; nothing is pruned if already the first step costs too much."""
        assert state.model is not None  # the pipeline checked `requires`
        assert state.reserved is not None
        rest, held = hold_out(state.reserved, self.validation, context.seed, least=self.least)
        model, layout = copy.deepcopy(state.model), context.hardware.channels_last
        few = rest.images[:2].to(context.hardware.device)
        unit = find_unit(model, to_float(few, channels_last=layout))
        activation = map_split(
            Activations(model, unit), rest, lambda values, labels: values, channels_last=layout
        ).mean(0)
        if not torch.isfinite(activation).all():
            raise UserError(
                f"stage {name}: activations are no numbers: the model has diverged; train it with a lower lr"
            )
        order = dormant_first(activation)
        counts = pruning_levels(unit.channels, self.step)
        counts = counts[: 1 + capped(len(counts), context)]
        accuracy = measure(model, unit, [order[:count] for count in counts], held, channels_last=layout)
        lowest = lowest_accepted(accuracy[0], self.max_drop, self.drop)
        chosen = last_accepted(accuracy, lowest)
        shares = [count / unit.channels for count in counts]
        curve = {"x": shares, "c_acc": accuracy, "lowest": lowest, "chosen": shares[chosen]}
        found: dict[str, Any] = {
            "kept_channels": prune_channels(model, unit, order[: counts[chosen]]),
            "channel_activation": activation,
            "pruned_channels": counts[chosen],
            "pruned_share": shares[chosen],
            "pruning_curve": curve,
        }
        context.say(
            f"{name}: {counts[chosen] or 'none'} of {unit.channels} channels of {unit.conv} pruned; C-Acc on "
            f"{len(held)} held-out trusted images {accuracy[0]:.3f} -> {accuracy[chosen]:.3f}"
        )
        return Outcome(replace(state, model=model, findings={**state.findings, **found}))

    def tried(self, before: State, after: State) -> Iterator[nn.Module]:
        """The model pruned to each share of the curve."""
        assert before.model is not None
        order = dormant_first(after.findings["channel_activation"])
        device = next(before.model.parameters()).device
        unit = find_unit(copy.deepcopy(before.model), to_float(before.train.images[:2].to(device)))
        for share in after.findings["pruning_curve"]["x"]:
            model = copy.deepcopy(before.model)
            prune_channels(model, unit, order[: round(share * unit.channels)])
            yield model

    def figures(self, state: State, folder: Path, name: str, entry: Mapping[str, Any]) -> list[Path]:
        """Clean accuracy against the share that is pruned."""
        path, title = folder / f"{name}_curve.png", f"{name}: dormant channels first"
        return [pruning_figure(state, entry, path, xlabel="share of channels pruned", title=title)]


def measure(
    model: nn.Module, unit: Unit, pruned: list[Tensor], held: Split, *, channels_last: bool = True
) -> list[float]:
    """Clean accuracy on `held` with each set of channels int64 (n,) pruned, in eval mode and fp32."""
    keep = torch.ones(len(pruned), unit.channels, dtype=torch.bool)
    for row, channels in zip(keep, pruned, strict=True):
        row[channels] = False
    right = map_split(
        Levels(model, unit, keep),
        held,
        lambda logits, labels: logits.argmax(2).eq(labels[:, None]).float(),
        channels_last=channels_last,
    )
    return right.double().mean(0).tolist()
