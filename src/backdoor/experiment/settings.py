"""What a config holds beside its choices: the keys of no group, and those of groups without a `_target_`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from backdoor.attacks import Attack
from backdoor.checking.expectations import Closed, Section
from backdoor.checking.ranges import Count, CountOrNone, NotNegative, Range, Seed
from backdoor.data.sources import Source
from backdoor.loggers.base import RunLogger
from backdoor.stages import Stage

Threads = Annotated[int, Range(least=1, most=1024)]  # beyond that, starting them ends the process


@dataclass(frozen=True)
class TrainerSettings(Closed):
    """conf/trainer."""

    device: str
    precision: str
    channels_last: bool
    compile: bool
    max_epochs: Count | None
    max_batches: Count | None
    checkpoint_s: NotNegative
    monitor_images: CountOrNone
    devices: Count = 1
    sync_batchnorm: bool = False


@dataclass(frozen=True)
class StoreSettings(Closed):
    """Where artifacts are kept."""

    dir: str | None


@dataclass(frozen=True)
class DefenseSettings(Section):
    """conf/defense: what every choice has; its own keys are checked where its stages refer to them."""

    name: str
    stages: Mapping[str, Stage]


@dataclass(frozen=True)
class PreviewSettings(Closed):
    """conf/preview.yaml."""

    images: Count
    measured: Count


@dataclass(frozen=True)
class Settings(Section):
    """conf/config.yaml."""

    data: Source
    model: nn.Module
    attack: Attack
    victim: Stage
    defense: DefenseSettings
    trainer: TrainerSettings
    seed: Seed
    reserved: float | None
    progress: bool
    force: bool
    threads: Threads | None
    store: StoreSettings
    logger: RunLogger | None = None
    preview: PreviewSettings | None = None
