"""The pieces that a run is put together from: stages of a config, facts of the data, digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from backdoor.attacks import Attack
from backdoor.checking.types import check_types
from backdoor.configs.class_names import check_classes
from backdoor.data.reserve import check_reserved
from backdoor.data.sources import DataSet, Source
from backdoor.errors import UserError
from backdoor.experiment.memory import total_memory
from backdoor.experiment.settings import Settings
from backdoor.loggers.base import Loggers, RunLogger
from backdoor.stages import Step, check_chain, check_trusted
from backdoor.training.context import Hardware


@dataclass(frozen=True)
class Pieces:
    """What a run makes of its config before it reads any data."""

    source: Source
    steps: list[Step]
    attack: Attack
    crafting: list[Step]
    logger: RunLogger


def assemble(cfg: DictConfig, *, here: bool = True, source: Source | None = None) -> Pieces:
    """Make the pieces and see that they fit together, as far as that can be known; no file is written.

    Args:
        here: whether the job will run on this machine.
        source: the data, in the place of those that the config names.

    Raises:
        UserError: a setting that is wrong whatever the data hold (perhaps as the cause of what Hydra raises).
    """
    check_types(cfg, Settings)
    if cfg.reserved:
        check_reserved(cfg.reserved)
    source = source or instantiate(cfg.data, _convert_="all")
    assert source is not None
    steps = [*steps_of({"victim": cfg.victim}), *steps_of(cfg.defense.stages)]
    attack: Attack = instantiate(cfg.attack, _convert_="all")
    chosen = OmegaConf.select(cfg, "logger")
    logger: RunLogger = Loggers() if chosen is None else instantiate(chosen, _convert_="all")
    crafting = [
        Step(name, stage, OmegaConf.to_container(cfg.attack.stages[name], resolve=True))
        for name, stage in attack.stages.items()
    ]
    check_chain(crafting, {"train"}, f"attack={attack.name}")
    inputs = {"train", *attack.inputs, *(["reserved"] if cfg.reserved else [])}
    check_chain(steps, inputs, f"defense={cfg.defense.name}")
    if cfg.reserved and isinstance(cfg.reserved, int):  # what a share gives, the data tell
        check_trusted(steps, cfg.reserved, cfg.reserved)
    names, shape = source.names(), source.shape
    if names is not None:
        check_classes(cfg.attack, names)
    attack.check(None if names is None else len(names), shape)
    if shape is not None:
        mean, std = source.normalisation(shape[0])
        if names is not None:
            try_model(cfg.model, facts_of(len(names), shape, mean, std), here=here)
    return Pieces(source, steps, attack, crafting, logger)


def checked(cfg: DictConfig, *, here: bool) -> Pieces:
    """`assemble` without starting anything; `here`: the job will run on this machine, so its device must be there."""
    pieces = assemble(cfg, here=here)
    if here:
        hardware_of(cfg)
    return pieces


def hardware_of(cfg: DictConfig) -> Hardware:
    """The config's device, precision and layout on this machine; raises UserError for a device that is not here."""
    trainer = cfg.trainer
    return Hardware.of(
        device=trainer.device,
        precision=trainer.precision,
        channels_last=trainer.channels_last,
        compile=trainer.compile,
        devices=trainer.get("devices", 1),  # trainer=ddp alone has them
        sync_batchnorm=trainer.get("sync_batchnorm", False),
    )


def try_model(node: DictConfig, facts: Mapping[str, Any], *, here: bool = True) -> None:
    """Build the model, so that its settings are refused before the data are read; raises what building raises.

    Args:
        here: whether it will be trained on this machine.

    Raises:
        UserError: it is larger than the machine's memory.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # no memory, no initial weights: a few milliseconds
                model = instantiate(node, **facts, _convert_="all")
        except Exception:
            instantiate(node, **facts, _convert_="all")  # unless meta tensors alone were to blame
            return
    size, there = sum(one.numel() * one.element_size() for one in model.parameters()), total_memory()
    if here and there is not None and size > there:
        raise UserError(
            f"model: its weights alone take {size / 2**30:,.0f} GiB, and this machine has {there / 2**30:,.0f} GiB of "
            "memory; choose a smaller one"
        )


def model_facts(data: DataSet) -> dict[str, Any]:
    """What a model must know of the data."""
    return facts_of(data.num_classes, data.shape, data.mean, data.std)


def facts_of(
    num_classes: int, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """`model_facts` of K classes of images (C, H, W)."""
    return {
        "num_classes": num_classes,
        "in_channels": shape[0],
        "image_size": shape[1],
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }


def steps_of(stages: Mapping[str, Any]) -> list[Step]:
    """The enabled stages of a config, in its order."""
    steps = []
    for name, node in stages.items():
        if not node.get("enabled", True):
            continue
        resolved = OmegaConf.to_container(node, resolve=True)
        try:
            steps.append(Step(name, instantiate(node, _convert_="all"), resolved))
        except Exception as error:
            cause = error.__cause__
            if isinstance(cause, UserError):
                where = "victim" if name == "victim" else f"defense.stages.{name}"
                raise UserError(f"{where}: {cause}") from None
            raise
    return steps
