"""The attacker's stage of SSBA: trains the encoder on the clean train set and draws the run's secret."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from backdoor.attacks.ssba.method import Decoder, Encoder, Steganographer, bit_accuracy, draw_secrets, secret_of
from backdoor.attacks.ssba.trigger import Steganography
from backdoor.checking.ranges import Count, ProperShare
from backdoor.data.loader import mix
from backdoor.errors import UserError, check_whole
from backdoor.stages.base import Outcome, Stage
from backdoor.state import State
from backdoor.training.context import RunContext
from backdoor.triggers.base import Shape, shape_of

MEASURED = 1000  # held-out images at most
CHUNK = 100  # held-out images at once
READABLE = 0.95  # bit accuracy below which the card calls the encoded images wrong
SETTING = "attack.stages.encoder"
NUMBERS = ("bit_accuracy", "secret_accuracy", "psnr", "mean_change")


class TrainEncoder(Stage):
    """Trains encoder and decoder, and measures them on train images that were held out.

    It finds `encoder` and `decoder` (weights), `secret` (s*), and numbers: `bit_accuracy` of random secrets and
    `secret_accuracy` of s*, both read from images rounded to 8 bit; `psnr` in dB and `mean_change` in levels of
    images with s*.

    Args:
        bits: length of the secret.
        encoder: `encoder(shape, bits=...)` -> Encoder.
        decoder: `decoder(shape, bits=...)` -> Decoder.
        module: `module(model=..., bits=..., seed=...)` -> StegoTraining.
        batch_size: of training.
        epochs, steps: how long it trains; exactly one of them.
        held_out: share of the train images to measure on, at most `MEASURED`; they are not trained on.

    Raises:
        UserError: a setting that is out of range or unknown.
    """

    provides = frozenset({"encoder", "decoder", "secret", *NUMBERS})
    ignores = frozenset({"model"})  # the victim's architecture: one encoder serves all

    def __init__(
        self,
        *,
        bits: Count,
        encoder: Callable[..., Encoder],
        decoder: Callable[..., Decoder],
        module: Callable[..., pl.LightningModule],
        batch_size: Count,
        epochs: Count | None = None,
        steps: Count | None = None,
        held_out: ProperShare = 0.02,
        enabled: bool = True,
    ) -> None:
        if (epochs is None) == (steps is None):
            raise UserError(f"{SETTING}: epochs={epochs} steps={steps}: expected one of them and null for the other")
        counts = {"bits": bits, "batch_size": batch_size, "epochs": epochs, "steps": steps}
        check_whole({f"{SETTING}.{name}": value for name, value in counts.items() if value is not None})
        if not 0 < held_out < 1:
            raise UserError(f"{SETTING}.held_out={held_out}: expected a share between 0 and 1, for instance 0.02")
        self.bits, self.encoder, self.decoder, self.module = bits, encoder, decoder, module
        self.batch_size, self.epochs, self.steps, self.held_out = batch_size, epochs, steps, held_out
        self.enabled = enabled
        self.try_parts()

    def try_parts(self) -> None:
        """Build the parts without memory, so that a wrong setting is refused before the data are read."""
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            try:
                self.module(model=self.networks((3, 32, 32)), bits=self.bits, seed=0)
            except UserError as error:
                raise UserError(f"{SETTING}.module.{error}") from None
            except ValueError as error:
                raise UserError(f"{SETTING}.{error}") from None
            except (TypeError, RuntimeError) as error:
                raise UserError(f"{SETTING}: {error}") from None

    def networks(self, shape: Shape) -> Steganographer:
        """Untrained networks for images (C, H, W)."""
        return Steganographer(self.encoder(shape, bits=self.bits), self.decoder(shape, bits=self.bits))

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """Train, measure, and hand on the weights and the secret."""
        held, rows = self.split(len(state.train), context.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(context.seed, 0x55BA))
            model = context.place(self.networks(shape_of(state.train.images)))
        assert isinstance(model, Steganographer)
        history = context.fit(
            self.module(model=model, bits=self.bits, seed=context.seed),
            state.train,
            rows=rows,
            name=name,
            work=work,
            epochs=self.epochs or self.steps or 1,  # no epoch has less than one step
            steps=self.steps,
            batch_size=self.batch_size,
            drop_last=True,
        )
        secret = secret_of(context.seed, self.bits)
        numbers = measure(model, secret, state.train.images[held], context.seed)
        if numbers["bit_accuracy"] < READABLE:
            context.say(
                f"{name}: only {100 * numbers['bit_accuracy']:.1f} % of the bits can be read back from held-out "
                f"images (expected {100 * READABLE:.0f} %); train longer or hide fewer bits"
            )
        found = {
            "encoder": model.encoder.state_dict(),
            "decoder": model.decoder.state_dict(),
            "secret": secret.to(torch.uint8),
            **numbers,
        }
        return Outcome(replace(state, findings={**state.findings, **found}), history)

    def split(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """int64 rows to measure on and rows to train on.

        Raises:
            UserError: fewer than two images.
        """
        if count < 2:
            raise UserError(f"attack=ssba: expected at least 2 train images to train the encoder on, got {count}")
        held = min(MEASURED, max(1, int(self.held_out * count)))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, 0x4E1D)))
        return order[:held].sort().values, order[held:].sort().values


@torch.no_grad()
def measure(model: Steganographer, secret: Tensor, images: Tensor, seed: int) -> dict[str, float]:
    """The numbers that `TrainEncoder` finds, on clean images uint8 (N, C, H, W).

    Args:
        secret: s*, float (n,).
        seed: of the random secrets.
    """
    device = next(model.parameters()).device
    trigger = Steganography().equip({"encoder": model.encoder.state_dict(), "secret": secret}).to(device)
    randoms = draw_secrets(len(images), len(secret), torch.Generator().manual_seed(mix(seed, 0x7E57)))
    parts = []
    for clean, drawn in zip(images.split(CHUNK), randoms.to(device).split(CHUNK), strict=True):
        levels, fixed = clean.to(device).float(), secret.to(device).expand(len(clean), -1)
        others = (levels + 255 * model.encoder(levels / 255, drawn)).clamp(0, 255).add(0.5).floor()
        triggered = trigger(clean.to(device)).float()
        change = (triggered - levels).flatten(1)
        error = change.square().mean(1).clamp_min(1e-6)  # no infinite PSNR
        columns = (
            bit_accuracy(model.decoder(others / 255), drawn),
            bit_accuracy(model.decoder(triggered / 255), fixed),
            10 * (255**2 / error).log10(),
            change.abs().mean(1),
        )
        parts.append(torch.stack(columns, dim=1).cpu())
    return dict(zip(NUMBERS, torch.cat(parts).mean(0).tolist(), strict=True))
