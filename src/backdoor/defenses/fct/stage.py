"""Scores every train row by how much its features change under random transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from backdoor.checking.ranges import Angle, Count, SomeShare
from backdoor.data.loader import mix
from backdoor.defenses.fct.method import check_transforms, feature_change, transformed
from backdoor.errors import UserError, check_whole
from backdoor.models.base import ImageClassifier
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext
from backdoor.training.inference import batch_for, evaluating, map_rows, predict

# Below so many times the accuracy of a guess, the network that scores knows nothing any more; how many rows are asked.
GUESS, ASKED = 1.5, 2000


class FeatureConsistency(Stage):
    """FCT (Chen, Wu, Wang 2022): triggered images change more under geometric transforms than clean ones.

    Args:
        weights: the finding that holds the network's weights.
        transforms: applied one after the other; see `transformed`.
        angle: largest rotation, degrees.
        shift: largest shift, share of a side.
        draws: random transforms a row, whose changes are averaged; the authors' code draws one.
        control, enabled: see `Stage`.

    Provides:
        fct: float32 (N,), higher = more suspect. A row's draws depend on the seed and its position alone.
    """

    provides = frozenset({"fct"})

    def __init__(
        self,
        *,
        weights: str,
        transforms: Sequence[str] = ("rotate", "affine"),
        angle: Angle = 180,
        shift: SomeShare = 0.2,
        draws: Count = 4,
        control: bool = False,
        enabled: bool = True,
    ) -> None:
        check_transforms(list(transforms))
        check_whole({"draws": draws})
        for setting, value, high in (("angle", angle, 180), ("shift", shift, 1)):
            if not isinstance(value, int | float) or not 0 < value <= high:
                raise UserError(f"{setting}={value}: expected a number above 0 and up to {high}")
        self.weights, self.draws = weights, draws
        self.transforms, self.range = list(transforms), {"angle": angle, "shift": shift}
        self.requires = frozenset({weights})
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """The state with the score."""
        model = context.make_model()
        if not isinstance(model, ImageClassifier):
            raise UserError(f"stage {name}: expected a model with features, got {type(model).__name__}")
        model.load_state_dict(state.findings[self.weights])
        self.warn_if_collapsed(model, state, context, name)
        generator = torch.Generator().manual_seed(mix(context.seed, 0xFC7))
        draws = torch.rand(len(state.train), self.draws, 3, generator=generator)
        scores = self.score(model, state.train, draws, context)
        if not torch.isfinite(scores).all():
            raise UserError(f"stage {name}: features are no numbers; lower the lr of the stages before")
        return Outcome(replace(state, scores={**state.scores, "fct": scores}))

    def warn_if_collapsed(self, model: ImageClassifier, state: State, context: RunContext, name: str) -> None:
        """Say so if the network no longer knows the labels it was trained on: its score then tells nothing.

        Pushing centres apart is done without a cross-entropy, and has wiped out all that a short warm-up taught.
        """
        rows = torch.linspace(0, len(state.train) - 1, min(ASKED, len(state.train))).long()
        some = state.train.take(rows)
        right = predict(model, some, precision=context.hardware.precision).cpu().eq(some.labels).float().mean().item()
        if right < GUESS / state.num_classes:
            context.say(
                f"{name}: the network that scores is right on {right:.0%} of the train rows, as a guess would be; give "
                "the stage before last (warm) more epochs, or the last (tighten) fewer"
            )

    @torch.no_grad()
    def score(self, model: ImageClassifier, train: Split, draws: Tensor, context: RunContext) -> Tensor:
        """float32 (N,), in batches, in eval mode and the run's precision.

        Under bf16 the network alone is rounded, neither transforms nor difference, and the ranks stay (Spearman's
        correlation with fp32: 0.9999 on CIFAR-10), at 1.6 times the speed.
        """
        hardware = context.hardware
        cast = torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.precision == "bf16")
        layout = torch.channels_last if hardware.channels_last else torch.contiguous_format

        def features(images: Tensor) -> Tensor:
            with cast:
                return model.features(images.contiguous(memory_format=layout)).float()

        def change(rows: Tensor) -> Tensor:
            pixels = train.images[rows.to(train.images.device)].to(hardware.device).float() / 255
            plain = features(pixels)
            found = torch.zeros(len(rows), device=hardware.device)
            for turn in range(self.draws):
                drawn = draws[rows, turn].to(hardware.device)
                found += feature_change(plain, features(transformed(pixels, drawn, self.transforms, **self.range)))
            return found / self.draws

        with evaluating(model):
            return map_rows(change, len(train), batch_size=batch_for(hardware.device))
