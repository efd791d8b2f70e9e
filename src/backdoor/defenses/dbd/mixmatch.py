"""DBD's last stage: MixMatch, with the labels of the half of the rows that fits them best, chosen anew each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor.checking.ranges import Count, NotNegative, Positive, ProperShare, Seed
from backdoor.data.augment import make_augment
from backdoor.data.loader import Batch, Chooses, ResidentLoader, mix
from backdoor.defenses.dbd.method import credible_rows, interleave, sharpen, symmetric_cross_entropy
from backdoor.errors import UserError, check_whole
from backdoor.stages.fit import Contributor
from backdoor.state import State
from backdoor.training import StageModule
from backdoor.training.inference import batch_for, evaluating, map_batches

PARTS = 3  # of a batch: labelled rows, and two views of unlabelled ones


class MixMatch(StageModule, Chooses):
    """Trains the whole model on credible rows with their labels and on all others without (MixMatch, NeurIPS 2019).

    At the start of each epoch a pass in eval mode over the augmented train set ranks it by symmetric cross-entropy;
    the lowest `share` is credible. A batch has `rows` credible images and two views of `rows` others, whose label is
    the sharpened mean of the model's own predictions. loss = CE(labelled) + w * mean squared error(unlabelled), both
    after MixUp; w rises linearly.

    Args:
        rows: labelled, and unlabelled, rows of a batch.
        steps: batches of an epoch.
        share: of the train set that keeps its labels (epsilon).
        per_class: that share of each class instead of the whole.
        augment: of the images, in training and in ranking.
        temperature: of `sharpen`.
        mix_alpha: of MixUp's Beta distribution.
        weight: w at its highest.
        ramp, ramp_start: epochs in which w rises from 0 to `weight`, and where on that way training begins: the epochs
            of the head before it count.
        alpha, beta: see `symmetric_cross_entropy`.
        seed: of the batches.
    """

    def __init__(
        self,
        *,
        rows: Count = 64,
        steps: Count = 1024,
        share: ProperShare = 0.5,
        per_class: bool = False,
        augment: str = "crop_flip",
        temperature: Positive = 0.5,
        mix_alpha: Positive = 0.75,
        weight: NotNegative = 15.0,
        ramp: Count = 190,
        ramp_start: NotNegative = 10,
        alpha: NotNegative = 0.1,
        beta: NotNegative = 1.0,
        seed: Seed = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_whole({"rows": rows, "steps": steps, "ramp": ramp})
        for setting, value in (("temperature", temperature), ("mix_alpha", mix_alpha)):
            if not isinstance(value, int | float) or value <= 0:
                raise UserError(f"{setting}={value}: expected a number above 0")
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise UserError(f"share={share}: expected a share between 0 and 1, for instance 0.5")
        if not isinstance(weight, int | float) or weight < 0:
            raise UserError(f"weight={weight}: expected a number of at least 0, for instance 15")
        self.rows, self.steps, self.share, self.per_class = rows, steps, share, per_class
        self.augment = make_augment(augment)
        self.temperature, self.mix_alpha, self.weight = temperature, mix_alpha, weight
        self.ramp, self.ramp_start = ramp, ramp_start
        self.entropy = {"alpha": alpha, "beta": beta}
        self.seed = seed
        self.losses, self.parts = torch.empty(0), PARTS

    def rank(self, epoch: int) -> Tensor:
        """float32 (N,): the symmetric cross-entropy of every augmented row, in eval mode."""
        device = next(self.model.parameters()).device
        loader = ResidentLoader(
            self.state.train,
            batch_size=batch_for(device),
            device=device,
            shuffle=False,
            augment=self.augment,
            seed=mix(self.seed, 0xDBD),
            epoch=epoch,
            channels_last=True,
        )

        def losses(batch: Batch) -> Tensor:
            return symmetric_cross_entropy(self.model(batch.images), batch.labels, **self.entropy)

        with evaluating(self.model):
            return map_batches(losses, loader, len(self.state.train))

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """int64 (3 * rows,) a batch: credible rows, others, the same others again; each pool shuffled and gone round.

        Raises:
            UserError: fewer than 1 / share rows, or losses that are no numbers.
        """
        self.losses = self.rank(epoch)
        if not torch.isfinite(self.losses).all():
            raise UserError("stage mixmatch: losses are no numbers; lower its lr, or set trainer.precision=fp32")
        credible = credible_rows(self.losses, self.share, self.state.train.labels if self.per_class else None)
        if not credible.any() or credible.all():
            raise UserError(f"share={self.share}: leaves no row with or none without a label, of {len(credible)} rows")
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, 0x3173))
        with_label, without = (self.rounds(mask.nonzero()[:, 0], generator) for mask in (credible, ~credible))
        for _ in range(self.steps):
            unlabelled = next(without)
            yield torch.cat([next(with_label), unlabelled, unlabelled])

    def rounds(self, pool: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """`rows` positions at a time, without end; a round's last, short part is dropped, a small pool repeats."""
        pool = pool.repeat(-(-self.rows // len(pool)))
        while True:
            shuffled = pool[torch.randperm(len(pool), generator=generator)]
            yield from shuffled[: len(pool) // self.rows * self.rows].split(self.rows)

    def guess(self, first: Tensor, second: Tensor) -> Tensor:
        """(b, K): the sharpened mean prediction of two views; BatchNorm in train mode, as in the authors' code."""
        with torch.no_grad():
            mean = (self.model(first).float().softmax(1) + self.model(second).float().softmax(1)) / 2
            return sharpen(mean, self.temperature)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A scalar."""
        count = len(batch.rows) // PARTS
        guessed = self.guess(batch.images[count : 2 * count], batch.images[2 * count :])
        known = F.one_hot(batch.labels[:count], guessed.shape[1]).to(guessed)
        wanted = torch.cat([known, guessed, guessed])
        drawn = float(torch.distributions.Beta(self.mix_alpha, self.mix_alpha).sample())
        share, other = max(drawn, 1 - drawn), torch.randperm(len(wanted)).to(wanted.device)
        images = share * batch.images + (1 - share) * batch.images[other]
        wanted = share * wanted + (1 - share) * wanted[other]
        # One forward a part, so that BatchNorm sees batches of the size that guesses and evaluation see.
        passes = [self.model(part).float() for part in interleave(images, PARTS).chunk(PARTS)]
        logits = interleave(torch.cat(passes), PARTS)
        labelled = -(wanted[:count] * logits[:count].log_softmax(1)).sum(1).mean()
        unlabelled = (logits[count:].softmax(1) - wanted[count:]).square().mean()
        weight = self.weight_at(self.current_epoch + batch_idx / self.steps)
        loss = labelled + weight * unlabelled
        parts = {"train/loss": loss, "train/labelled": labelled, "train/unlabelled": unlabelled}
        self.log_dict(
            {name: value.detach() for name, value in parts.items()}, on_step=False, on_epoch=True, batch_size=count
        )
        return loss

    def weight_at(self, epoch: float) -> float:
        """w after so many (fractions of) epochs of this stage."""
        return self.weight * min(1.0, (self.ramp_start + epoch) / self.ramp)


class CredibleRows(Contributor):
    """Hands on the last epoch's ranking as the score `label_loss`, and which rows kept their label as `trusted`."""

    provides: Sequence[str] = ("label_loss", "trusted")

    def __init__(self) -> None:
        self.found: tuple[Tensor, Tensor] | None = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what the module ranked last."""
        assert isinstance(pl_module, MixMatch)
        labels = pl_module.state.train.labels if pl_module.per_class else None
        self.found = pl_module.losses, credible_rows(pl_module.losses, pl_module.share, labels)

    def contribute(self, state: State) -> State:
        """Adds both."""
        assert self.found is not None  # a fit has ended
        losses, credible = self.found
        return replace(
            state,
            scores={**state.scores, "label_loss": losses},
            groups={**state.groups, "trusted": credible},
        )
