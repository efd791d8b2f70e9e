"""Stages, a module and a callback that look for the truth in all that they are handed."""

from __future__ import annotations

import gc
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from backdoor.attacks import Poisoned, PoisonPlan
from backdoor.experiment.evaluator import Evaluator
from backdoor.experiment.monitoring import Curves
from backdoor.experiment.preparation import Preparation
from backdoor.experiment.record import Record
from backdoor.loggers.base import CSVLogger, Loggers
from backdoor.stages import Outcome, Stage
from backdoor.state import State, Truth
from backdoor.store.store import Store
from backdoor.training import Classifier
from backdoor.training.context import RunContext
from backdoor.triggers.base import Trigger

TRUTH = (Truth, Evaluator, Poisoned, PoisonPlan, Trigger, Preparation, Record, Curves, Store, CSVLogger, Loggers)
# What every object of a process leads to (a class to its module, a module to all others) and so tells nothing.
NOWHERE = (type, ModuleType, CodeType, FrameType, TracebackType, torch.Tensor, str, bytes, int, float, Path)

SEEN: list[str] = []  # who looked
FOUND: list[str] = []  # what was found, with the way to it


def leads_on(thing: Any) -> list[Any]:
    """What an object refers to; a function leads to what it has closed over, not to its module."""
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if cell_is_full(cell)]
        return [*cells, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
    return gc.get_referents(thing)


def cell_is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def is_truth(thing: Any) -> bool:
    if isinstance(thing, DictConfig):
        return "attack" in thing
    return isinstance(thing, TRUTH) or (isinstance(thing, dict) and {"asr", "c_acc"} & thing.keys() != set())


def look(who: str, *handed: Any) -> None:
    """Walk every reference from what was handed."""
    SEEN.append(who)
    queue: deque[tuple[Any, str]] = deque((thing, f"{who}: {type(thing).__name__}") for thing in handed)
    known, kept = {id(thing) for thing in handed}, list(handed)
    while queue:
        thing, way = queue.popleft()
        if is_truth(thing):
            FOUND.append(way)
            continue
        for one in leads_on(thing):
            if id(one) not in known and not isinstance(one, NOWHERE):
                known.add(id(one))
                kept.append(one)  # an id counts as long as its object lives
                queue.append((one, f"{way} > {type(one).__name__}"))


class SpyModule(Classifier):
    """Trains as ever, and looks."""

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self.trainer.current_epoch == 1:  # the first has been measured by now
            look("module", self, self.trainer)


class SpyCallback(pl.Callback):
    """Looks."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            look("callback", trainer, pl_module)


class SpyStage(Stage):
    """Looks, and trains in between."""

    requires = frozenset({"model"})
    provides = frozenset({"looked"})

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        look("stage", self, state, context, work)
        return Outcome(replace(state, findings={**state.findings, "looked": 1}))
