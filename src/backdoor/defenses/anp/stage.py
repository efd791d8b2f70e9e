"""The stage that learns the masks and prunes by them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from backdoor.checking.ranges import BelowOne, Count, Momentum, NotNegative, ProperShare, Share
from backdoor.data.augment import make_augment
from backdoor.data.loader import mix, to_float
from backdoor.defenses.anp.method import learn_masks, scaled
from backdoor.defenses.anp.norms import find_norms, neuron_count, prune_neurons, split_by_norm
from backdoor.defenses.anp.threshold import GRID, accuracy, largest_accepted, sweep
from backdoor.defenses.pruning import (
    check_drop,
    check_share,
    hold_out,
    lowest_accepted,
    pruning_figure,
    rows_for,
    rows_to_hold_out,
)
from backdoor.errors import UserError, check_whole, suggest
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.gradients import capped, fixed, in_precision
from backdoor.training.observing import epoch_ended

STATISTICS = ("batch", "running")
ROWS = 10  # of the record, over all steps


class MaskNeurons(Stage):
    """Learns a mask in [0, 1] for each channel of the normalisation layers and prunes those with small ones.

    Args:
        lr, momentum: of the masks' SGD; 0.2 and 0.9 in the paper.
        eps: largest disturbance of scale and shift, relative to them; 0.4 in the paper.
        alpha: weight of the undisturbed loss; 0.2 in the paper.
        ascent_steps: of the inner maximisation; 1 in the paper.
        steps, batch_size: 2000 and 128 in the paper; rows are drawn with replacement (the authors' code).
            `trainer=debug` caps the steps.
        augment: the loader's pipeline.
        statistics: `batch` normalises by the batch's own while masks are learnt, as the authors' code does;
            `running` by the model's. Those of the model stay as they were either way.
        threshold: masks of at most this are pruned (0.2 in the paper), or None: see `max_drop`.
        max_drop, drop: with threshold=None, the largest threshold that costs no more clean accuracy than this on
            held-out trusted rows; `drop` is `absolute` or `relative`.
        validation: share of `reserved` that is held out; masks are learnt on the rest.
        control, enabled: see `Stage`.

    Provides:
        model: with the scale of pruned channels 0.
        neuron_masks: layer name -> float32 (C,).
        mask_threshold, pruned_neurons, pruned_share: the threshold that was used (None: no threshold was accepted,
            nothing is pruned), how many neurons, and of all.
        pruning_curve: see `pruning_figure`; `x` are thresholds, `pruned` the neurons at each.

    Raises:
        UserError: a setting out of range.
    """

    requires = frozenset({"model", "reserved"})
    provides = frozenset({"model", "neuron_masks", "mask_threshold", "pruned_neurons", "pruned_share", "pruning_curve"})

    def __init__(
        self,
        *,
        lr: NotNegative = 0.2,
        momentum: Momentum = 0.9,
        eps: Share = 0.4,
        alpha: Share = 0.2,
        ascent_steps: Count = 1,
        steps: Count = 2000,
        batch_size: Count = 128,
        augment: str = "none",
        statistics: str = "batch",
        threshold: BelowOne | None = 0.2,
        max_drop: BelowOne = 0.04,
        drop: str = "absolute",
        validation: ProperShare = 0.2,
        control: bool = False,
        enabled: bool = True,
    ) -> None:
        check_whole({"steps": steps, "batch_size": batch_size, "ascent_steps": ascent_steps})
        check_range("lr", lr, least=0, most=math.inf)
        for setting, value in (("momentum", momentum), ("alpha", alpha), ("eps", eps)):
            check_range(setting, value, least=0, most=1)
        if threshold is not None:
            check_range("threshold", threshold, least=0, most=0.999, hint=", or null")
        if statistics not in STATISTICS:
            raise UserError(f"statistics={statistics}: {suggest(str(statistics), STATISTICS)}")
        check_drop(max_drop, drop)
        check_share("validation", validation)
        self.augment = make_augment(augment)
        self.search = {"lr": lr, "momentum": momentum, "eps": eps, "alpha": alpha, "ascent_steps": ascent_steps}
        self.steps, self.batch_size, self.statistics = steps, batch_size, statistics
        self.threshold, self.max_drop, self.drop, self.validation = threshold, max_drop, drop, validation
        self.least = rows_for(max_drop) if threshold is None else 1  # to be held out
        self.reserved_rows = rows_to_hold_out(validation, self.least)
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with the pruned model."""
        assert state.model is not None  # the pipeline checked `requires`
        assert state.reserved is not None
        norms = find_norms(state.model)
        rest, held = hold_out(state.reserved, self.validation, context.seed, least=self.least)
        masks, history = self.learn(state.model, rest, context, name)
        named = split_by_norm(masks, norms)
        curve = self.cut(state.model, named, held, channels_last=context.hardware.channels_last)
        chosen = curve["chosen"]
        pruned = {key: part <= (-1.0 if chosen is None else chosen) for key, part in named.items()}
        model = copy.deepcopy(state.model)
        prune_neurons(model, pruned)
        count = sum(int(part.sum()) for part in pruned.values())
        found: dict[str, Any] = {
            "neuron_masks": named,
            "mask_threshold": chosen,
            "pruned_neurons": count,
            "pruned_share": count / len(masks),
            "pruning_curve": curve,
        }
        after = curve["before"] if chosen is None else curve["c_acc"][curve["x"].index(chosen)]
        how = "no threshold is accepted" if chosen is None else f"masks up to {chosen}"
        context.say(
            f"{name}: {count or 'none'} of {len(masks)} neurons pruned ({how}); C-Acc on {len(held)} held-out trusted "
            f"images {curve['before']:.3f} -> {after:.3f}"
        )
        return Outcome(replace(state, model=model, findings={**state.findings, **found}), history)

    def learn(
        self, given: nn.Module, split: Split, context: RunContext, name: str
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """The masks (n,) on the CPU and rows for the record; `given`, its statistics too, is not changed."""
        model = copy.deepcopy(given)
        norms = find_norms(model)
        masks = torch.ones(neuron_count(norms), device=context.hardware.device)
        generator = torch.Generator().manual_seed(mix(context.seed, 0xA2))
        total = capped(self.steps, context)
        history: list[dict[str, Any]] = []

        def forward(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            parameters = scaled(norms, weight, bias)
            return in_precision(lambda batch: functional_call(model, parameters, (batch,)), context.hardware)(images)

        with fixed(model):
            for part in model.modules():
                if isinstance(part, _BatchNorm):
                    part.train(self.statistics == "batch")
            batches = self.batches(split, context, total)
            losses: list[Tensor] = []
            started = time.perf_counter()
            for step, loss in enumerate(learn_masks(forward, batches, masks, generator=generator, **self.search), 1):  # type: ignore[arg-type]
                losses.append(loss)
                if len(losses) * ROWS >= total or step == total:
                    row = self.row(name, len(history) + 1, losses, time.perf_counter() - started)
                    history.append(row)
                    epoch_ended(dict(row))
                    losses, started = [], time.perf_counter()
        return masks.detach().cpu(), history

    def row(self, name: str, number: int, losses: list[Tensor], seconds: float) -> dict[str, Any]:
        """A row of the record: a tenth of the steps stands for an epoch. Stops if the loss is no number."""
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise UserError(f"stage {name}: the loss became {loss}; lower its lr or eps, or set trainer.precision=fp32")
        return {"stage": name, "epoch": number, "loss": loss, "lr": self.search["lr"], "seconds": round(seconds, 3)}

    def batches(self, split: Split, context: RunContext, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Seeded draws of rows with replacement, as (images float [0, 1], labels) on the device."""
        hardware, generator = context.hardware, torch.Generator().manual_seed(mix(context.seed, 0xA3))
        size = min(self.batch_size, len(split))
        for _ in range(count):
            rows = torch.randint(len(split), (size,), generator=generator)
            images = self.augment(split.images[rows].to(hardware.device), generator)
            yield to_float(images, channels_last=hardware.channels_last), split.labels[rows].to(hardware.device)

    def cut(self, model: nn.Module, masks: Mapping[str, Tensor], held: Split, *, channels_last: bool) -> dict[str, Any]:
        """`pruning_curve`: clean accuracy at each threshold of the grid, and the threshold that is chosen."""
        thresholds = sorted({*GRID, *([] if self.threshold is None else [self.threshold])})
        before = accuracy(model, held, channels_last=channels_last)
        counts, after = sweep(model, masks, held, thresholds, channels_last=channels_last)
        lowest = lowest_accepted(before, self.max_drop, self.drop) if self.threshold is None else None
        chosen = self.threshold if lowest is None else largest_accepted(thresholds, after, lowest)
        return {
            "x": thresholds,
            "c_acc": after,
            "pruned": counts,
            "before": before,
            "lowest": lowest,
            "chosen": chosen,
        }

    def tried(self, before: State, after: State) -> Iterator[nn.Module]:
        """The model cut at each threshold of the curve."""
        assert before.model is not None
        for threshold in after.findings["pruning_curve"]["x"]:
            model = copy.deepcopy(before.model)
            prune_neurons(model, {name: part <= threshold for name, part in after.findings["neuron_masks"].items()})
            yield model

    def figures(self, state: State, folder: Path, name: str, entry: Mapping[str, Any]) -> list[Path]:
        """Clean accuracy against the threshold."""
        path = folder / f"{name}_curve.png"
        title = f"{name}: {state.findings['pruned_neurons']:,} neurons pruned"
        return [pruning_figure(state, entry, path, xlabel="threshold of the masks", title=title)]


def check_range(setting: str, value: Any, *, least: float, most: float, hint: str = "") -> None:
    """Raises UserError for anything but a number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or value != value:
        upper = f" and at most {most}" if math.isfinite(most) else ""
        raise UserError(f"{setting}={value}: expected a number of at least {least}{upper}{hint}")
