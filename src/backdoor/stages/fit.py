"""The stage that trains: victims, isolation, fine-tuning and unlearning are all `Fit`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from backdoor.checking.ranges import Count
from backdoor.data.augment import PIPELINES
from backdoor.errors import UserError, suggest
from backdoor.models.base import ImageClassifier
from backdoor.stages.base import Outcome, Stage
from backdoor.state import Split, State
from backdoor.training.context import RunContext

MODELS = ("fresh", "current")
TRAINED_ON = ("all", "kept", "suspect", "trusted", "reserved")


class Contributor(pl.Callback):
    """A callback that finds something and hands it on.

    Attributes:
        provides: names of the scores, groups and findings that it hands on.
    """

    provides: Sequence[str] = ()

    def contribute(self, state: State) -> State:
        """The state with the findings in it."""
        raise NotImplementedError


def try_module(module: Callable[..., pl.LightningModule]) -> None:
    """Build the module on a toy, so that its settings are refused at once and not after the stages before it.

    Raises:
        UserError: a setting that the module refuses or does not know.
    """
    labels = torch.zeros(2, dtype=torch.int64)
    split = Split.of(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), labels)
    toy = State(split, 2, reserved=split, groups={"suspect": labels.bool()})
    try:
        with torch.random.fork_rng(devices=[]):  # a check leaves no trace
            model = ImageClassifier(nn.Flatten(), 1, num_classes=2, mean=[0.0], std=[1.0])
            module(model=model, state=toy)
    except TypeError as error:
        raise UserError(f"module: {error}") from None
    except (AttributeError, KeyError):  # it reads more of a model or a state than the toy has
        return


def check_trained(model: nn.Module, name: str) -> None:
    """Raises UserError if a weight is no number: the loss shows it one step later, and the last step has none."""
    for weight, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"stage {name}: {weight} became NaN or Inf: the training has diverged; lower its lr, or set "
                "trainer.precision=fp32"
            )


class Fit(Stage):
    """Train a model on some of the rows.

    Args:
        module: `module(model=..., state=...)` -> LightningModule with the attribute `model`.
        model: `fresh` starts from an untrained model, `current` from a copy of the state's.
        rows: which rows are trained on: `all`, `kept` (not suspect), `suspect`, `trusted`, or the `reserved` split; a
            list, as [suspect, trusted], goes through one group after the other in each epoch; `suspect|trusted` mixes
            the two.
        epochs: passes over those rows.
        steps: if given, stop after so many optimiser steps.
        batch_size, augment, drop_last: the loader's.
        callbacks: name -> partial of a callback; a `Contributor` hands its findings on to the state.
        labels: False hides the labels of the train set from the module; the outcome is then shared by all runs whose
            images are the same, whatever their labels.
        requires: what the module reads of the state besides.
        weights: a finding with the weights that the model starts from, for instance what an earlier fit left by `into`.
        into: `model` makes the trained model the state's; another name keeps that as it is and hands the trained
            weights on as a finding of that name (a teacher).
        when: a finding; if it is false (0, none flagged), nothing is trained and the current model is handed on.
        control, enabled: see `Stage`.
    """

    def __init__(
        self,
        *,
        module: Callable[..., pl.LightningModule],
        model: str = "fresh",
        rows: str | Sequence[str] = "all",
        epochs: Count,
        steps: Count | None = None,
        batch_size: Count = 128,
        augment: str = "none",
        drop_last: bool = False,
        callbacks: Mapping[str, Callable[[], pl.Callback]] | None = None,
        labels: bool = True,
        requires: Sequence[str] = (),
        weights: str | None = None,
        into: str = "model",
        when: str | None = None,
        control: bool = False,
        enabled: bool = True,
    ) -> None:
        groups = [rows] if isinstance(rows, str) else list(rows)
        mixed = [name for group in groups for name in str(group).split("|")]
        if not mixed:
            raise UserError(f"rows=[]: expected at least one of {', '.join(TRAINED_ON)}")
        chosen = [("model", model, MODELS), ("augment", augment, tuple(PIPELINES))]
        for setting, value, choices in [*chosen, *(("rows", name, TRAINED_ON) for name in mixed)]:
            if value not in choices:
                raise UserError(f"{setting}={value}: {suggest(str(value), choices)}")
        for setting, number in (("epochs", epochs), ("batch_size", batch_size), ("steps", steps or 1)):
            if number < 1:
                raise UserError(f"{setting}={number}: expected at least 1")
        if when is not None and (model != "current" or into != "model"):
            raise UserError(f"when={when}: expected model=current and into=model, so that there is one to hand on")
        try_module(module)
        if "reserved" in mixed and len(mixed) > 1:
            raise UserError(
                f"rows={groups}: reserved is a set of its own and cannot be mixed with rows of the train set"
            )
        self.module, self.model, self.rows, self.weights = module, model, groups, weights
        self.epochs, self.steps = epochs, steps
        self.loader = {"batch_size": batch_size, "augment": augment, "drop_last": drop_last}
        self.callbacks = [make() for make in (callbacks or {}).values()]
        needs = {"current": {"model"}}.get(model, set()) | {name for name in (weights, when) if name is not None}
        for one in mixed:
            needs |= {"kept": {"suspect"}, "all": set()}.get(one, {one})
        self.when, self.reads = when, "train" if labels else "images"
        self.requires = frozenset(needs | set(requires))
        found = [name for part in self.callbacks if isinstance(part, Contributor) for name in part.provides]
        self.into = into
        self.provides = frozenset({into, *found})
        self.control, self.enabled = control, enabled

    def run(self, state: State, context: RunContext, *, name: str, work: Path) -> Outcome:
        """Train and return the state with the trained model and the callbacks' findings."""
        if self.when is not None and not state.findings[self.when]:
            return Outcome(state)
        model = context.make_model() if self.model == "fresh" else copy.deepcopy(state.model)
        assert model is not None  # the pipeline checked `requires`
        if self.weights is not None:
            model.load_state_dict(state.findings[self.weights])
        train, rows = self.select(state, name)
        module = self.module(model=model, state=state)
        history = context.fit(
            module,
            train,
            rows=rows,
            name=name,
            work=work,
            epochs=self.epochs,
            steps=self.steps,
            callbacks=self.callbacks,
            **self.loader,
        )
        check_trained(model, name)
        if self.into == "model":
            result = replace(state, model=model)
        else:
            result = replace(state, findings={**state.findings, self.into: dict(model.state_dict())})
        for callback in self.callbacks:
            if isinstance(callback, Contributor):
                result = callback.contribute(result)
        return Outcome(result, history)

    def select(self, state: State, name: str) -> tuple[Split, list[Tensor] | None]:
        """The split and the rows of it that are trained on, a group after the other."""
        if self.rows == ["reserved"]:
            assert state.reserved is not None
            return state.reserved, None
        if self.rows == ["all"]:
            return state.train, None
        return state.train, [self.group(state, group, name) for group in self.rows]

    @staticmethod
    def group(state: State, group: str, name: str) -> Tensor:
        """int64: the rows of one group of the train set.

        Raises:
            UserError: there are none.
        """
        mask = torch.zeros(len(state.train), dtype=torch.bool)
        for one in group.split("|"):
            whole = {"all": ~mask, "kept": ~state.groups.get("suspect", mask)}
            mask = mask | (whole[one] if one in whole else state.groups[one])
        rows = mask.nonzero().flatten()
        if len(rows) == 0:
            flagged = {key: int(value.sum()) for key, value in state.groups.items()}
            raise UserError(f"stage {name}: no row to train on (rows={group}; rows of each group: {flagged})")
        return rows
