"""What a stage may use besides the state: a seed, a device, fresh models, fresh trainers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from backdoor.data.loader import Chooses, mix
from backdoor.data.module import PoisonedDataModule
from backdoor.errors import UserError, suggest
from backdoor.loggers.console import StageProgress
from backdoor.state import Split
from backdoor.store.ranks import world
from backdoor.training.callbacks import History, OwnSignals, Resume, SeedEpochs, SharedStatistics

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("cpu", "cuda", "mps")  # torch has others, such as meta, on which nothing is computed


@dataclass(frozen=True)
class Hardware:
    """How things run; `of` resolves `auto`.

    Attributes:
        device: where models and batches live.
        precision: `bf16` (autocast) or `fp32`.
        channels_last: memory layout of images and convolutions.
        compile: `torch.compile` the model while it trains.
        sync_batchnorm: with several processes, BatchNorm sees the whole batch; on CUDA alone.
    """

    device: torch.device
    precision: str
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False

    @staticmethod
    def of(
        *,
        device: str,
        precision: str,
        channels_last: bool,
        compile: bool,
        devices: int = 1,
        sync_batchnorm: bool = False,
    ) -> Hardware:
        """Resolve `auto` for this machine.

        Raises:
            UserError: a device that is not there, more `devices` than there are, an unknown precision.
        """
        if precision not in PRECISIONS:
            raise UserError(f"trainer.precision={precision}: {suggest(precision, PRECISIONS)}")
        if device == "auto":
            mps = torch.backends.mps.is_available()
            device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
        try:
            found = torch.device(device)
            if found.type not in DEVICES:
                raise RuntimeError(found.type)
            found = found if devices == 1 else own_device(found, devices)
            torch.empty(1, device=found)
        except (RuntimeError, AssertionError):
            raise UserError(
                f"trainer.device={device}: not available here; use auto, cpu, cuda, cuda:N or mps"
            ) from None
        if precision == "auto":
            precision = "bf16" if has_bf16(found) else "fp32"
        return Hardware(found, precision, channels_last, compile, sync_batchnorm and found.type == "cuda")

    def key(self) -> dict[str, Any]:
        """What may change a result's digits, for artifact keys."""
        found = {"device": self.device.type, "precision": self.precision, "channels_last": self.channels_last}
        # One process keeps the key that it had before there could be several.
        return found if world() == 1 else {**found, "devices": world(), "sync_batchnorm": self.sync_batchnorm}


def own_device(device: torch.device, devices: int) -> torch.device:
    """This process's device, of as many as there are processes.

    Raises:
        UserError: a device that cannot be shared out, or too few.
    """
    if device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UserError(
            f"trainer.devices={devices}: expected trainer.device=cuda or cpu, got {device}; "
            "CUDA_VISIBLE_DEVICES says which GPUs are used"
        )
    there = torch.cuda.device_count()
    if there and devices > there:  # where there is none, that is what is wrong
        raise UserError(
            f"trainer.devices={devices}: expected at most the number of GPUs that this process sees, {there}; use "
            "fewer, and no hydra.launcher.devices, which gives a job one GPU"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # torchrun's


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is native: on a CPU that means AVX512-BF16 or AMX, not emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


@dataclass(frozen=True)
class RunContext:
    """Handed to every stage.

    Attributes:
        seed: of the run; the same seed gives the same numbers on the same machine.
        hardware: device, precision, layout.
        new_model: builds an untrained model; `make_model` seeds it.
        max_epochs, max_batches: caps of `trainer=debug`; None = no cap.
        checkpoint_s: seconds between resume points.
        say: prints one line.

    Nothing in it leads to the test set, the trigger or the record; `backdoor.training.observing` says who watches.
    """

    seed: int
    hardware: Hardware
    new_model: Callable[[], nn.Module]
    max_epochs: int | None = None
    max_batches: int | None = None
    checkpoint_s: float = 30.0
    progress: bool = True
    say: Callable[[str], None] = print

    def make_model(self) -> nn.Module:
        """A freshly initialised model on the device, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.seed, 0xD0))
            model = self.new_model()
        return self.place(model)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the run's memory layout."""
        layout = torch.channels_last if self.hardware.channels_last else torch.contiguous_format
        return model.to(self.hardware.device, memory_format=layout)  # type: ignore[call-overload]

    def fit(
        self,
        module: pl.LightningModule,
        train: Split,
        *,
        name: str,
        work: Path,
        epochs: int,
        steps: int | None = None,
        callbacks: Sequence[pl.Callback] = (),
        **loader: Any,
    ) -> list[dict[str, Any]]:
        """Train `module.model` with a fresh Trainer, going on from `work` if an earlier call was killed.

        One Trainer fitted twice would run no step the second time, silently; so there is one a fit.

        Args:
            steps: stop after so many optimiser steps, whatever `epochs` says.
            loader: arguments of `PoisonedDataModule`.

        Returns:
            One row of measurements an epoch.
        """
        hardware = self.hardware
        data = PoisonedDataModule(
            train,
            device=hardware.device,
            seed=self.seed,
            channels_last=hardware.channels_last,
            chooser=module if isinstance(module, Chooses) else None,
            **loader,
        )
        history = History(name)
        resume = Resume(work / "resume.ckpt", every_s=self.checkpoint_s)
        progress = StageProgress(name, progress=self.progress)
        trainer = pl.Trainer(
            max_epochs=epochs if self.max_epochs is None else min(epochs, self.max_epochs),
            max_steps=-1 if steps is None else steps,
            limit_train_batches=1.0 if self.max_batches is None else self.max_batches,
            accelerator={"cuda": "gpu"}.get(hardware.device.type, hardware.device.type),
            **self.placement(),
            precision="bf16-mixed" if hardware.precision == "bf16" else "32-true",
            callbacks=[OwnSignals(), SeedEpochs(self.seed), SharedStatistics(), *callbacks, history, progress, resume],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            default_root_dir=work,
        )
        model: nn.Module = module.model  # type: ignore[assignment]
        if hardware.compile:
            model.compile()
        module.train()  # Lightning keeps the mode that it finds, and a loaded model is in eval mode
        trainer.fit(module, datamodule=data, ckpt_path=resume.existing(module, self.say), weights_only=True)
        model._compiled_call_impl = None
        self.place(model)
        resume.done()
        return history.rows

    def placement(self) -> dict[str, Any]:
        """On which devices a Trainer runs, as its arguments."""
        if world() == 1:
            device = self.hardware.device
            return {"devices": [device.index or 0] if device.type == "cuda" else 1}
        # Some stages train a part of the model alone; statistics are averaged by `SharedStatistics`.
        strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        return {"devices": world(), "strategy": strategy, "sync_batchnorm": self.hardware.sync_batchnorm}
