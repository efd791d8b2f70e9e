"""Runs a chain of stages: checked before anything trains, each stage an artifact of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from backdoor.errors import UserError
from backdoor.stages.artifact import load_outcome, save_outcome
from backdoor.stages.base import Outcome, Stage
from backdoor.stages.collapse import LINE, collapse
from backdoor.stages.made_with import differing, made_with
from backdoor.stages.network import check_kept, network_for
from backdoor.stages.view import context_for, merged, shown
from backdoor.state import State
from backdoor.store.ranks import rank
from backdoor.store.source import source_digest
from backdoor.store.store import Store, fingerprint
from backdoor.training.context import RunContext
from backdoor.training.observing import stage_begins


@dataclass(frozen=True)
class Step:
    """A stage, its name and the resolved config that it was made from (for its key).

    `mark`, JSON-able, is kept beside the artifact and is no part of its key; plans find it by that.
    """

    name: str
    stage: Stage
    config: Any
    mark: Any = None


@dataclass(frozen=True)
class Finished:
    """A stage that has run, as the evaluator gets it.

    Attributes:
        before: the state that it was handed.
        stored_with: what a stage from the store was made with (see `made_with`), as far as that differs from here.
    """

    step: Step
    before: State
    state: State
    key: str
    hit: bool
    seconds: float
    history: list[dict[str, Any]] = field(default_factory=list)
    stored_with: Mapping[str, Any] = field(default_factory=dict)
    collapse: dict[str, float] | None = None

    def numbers(self) -> dict[str, float]:
        """The stage's own findings that are numbers."""
        found, own = self.state.findings, self.step.stage.provides
        return {name: value for name, value in found.items() if name in own and isinstance(value, int | float)}


def check_chain(steps: list[Step], has: set[str], what: str) -> None:
    """Raises UserError if a stage needs what neither the inputs nor an earlier stage provide."""
    known = set(has)
    for step in steps:
        missing = sorted(step.stage.requires - known)
        if missing:
            hint = {
                "reserved": "set reserved, for instance reserved=0.05",
                "suspect": "an earlier stage must flag rows, or attack.isolated must name an isolation",
                "model": "an earlier stage must train one; victim=true trains the victim",
            }
            raise UserError(
                f"{what}: stage {step.name} needs {', '.join(missing)}, which nothing before it provides; "
                + "; ".join(hint.get(name, f"add a stage that provides {name}") for name in missing)
            )
        if not step.stage.control:
            known |= step.stage.provides


def check_trusted(steps: list[Step], reserved: int | float, rows: int) -> None:
    """Raises UserError if a stage needs more trusted rows than there are.

    Args:
        reserved: the setting, a number or a share, for the message.
        rows: how many that is.
    """
    for step in steps:
        least = step.stage.reserved_rows
        if "reserved" in step.stage.requires and rows < least:
            raise UserError(
                f"reserved={reserved}: gives {rows} trusted rows, but stage {step.name} needs at least {least}; set "
                f"reserved={least} or more, or other settings of that stage"
            )


def kind_of(step: Step) -> str:
    """The store's folder for a stage: victims, which many runs share, lie apart."""
    return "victim" if step.name == "victim" else "stage"


class Pipeline:
    """Runs stages over a state, fetching each one's outcome from the store if it is there.

    A stage's key is its config, the source that computes it (see `source_digest`), the run's seed, model and hardware,
    and the keys of just those inputs that it requires. So a chain that does not look at the victim is shared by runs
    whose victims differ, and two defenses that begin alike share their beginning. A stage that makes no use of one of
    those, say the model, names it in its attribute `ignores` (a frozenset of names in `common`) and is then shared by
    runs that differ in it; one whose attribute `reads` is `images` does not look at labels. Each stage is handed just
    that (see `shown`), so no key can be too small.

    Args:
        keys: name of an input (`train`, its `images` alone, `model`, ...) -> digest.
        common: JSON-able, part of every key.
    """

    def __init__(self, store: Store, context: RunContext, *, keys: Mapping[str, str], common: Any) -> None:
        self.store, self.context, self.common = store, context, common
        self.keys = dict(keys)

    def key(self, step: Step) -> str:
        """The artifact key of a stage, given what ran before."""
        stage = step.stage
        inputs = {name: self.keys[name] for name in sorted({stage.reads, *stage.requires})}
        ignores = stage.ignores
        common = {name: self.common[name] for name in self.common if name not in ignores} if ignores else self.common
        source = source_digest([step.config, common])
        return fingerprint({"stage": step.config, "inputs": inputs, "common": common, "source": source})

    def stored(self, step: Step) -> bool:
        """Whether the outcome of a stage, given what ran before, is in the store."""
        return self.store.has(kind_of(step), self.key(step))

    def capped(self, epochs: int) -> Pipeline:
        """A pipeline that goes on from here with no stage longer than `epochs`; the cap is part of its keys."""
        context = replace(self.context, max_epochs=epochs)
        common = {**self.common, "caps": [epochs, context.max_batches]}
        return Pipeline(self.store, context, keys=self.keys, common=common)

    def run(
        self, state: State, steps: list[Step], report: Callable[[Finished], None], *, what: str = "defense"
    ) -> State:
        """Run the chain, reporting each stage as it ends; `what` it belongs to is named in errors.

        Raises:
            UserError: a need that is not met, before any stage runs.
        """
        has = {name for name in self.keys if state.has(name)}
        check_chain(steps, has, what)
        for step in steps:
            finished = self.fetch(state, step)
            report(finished)
            if not step.stage.control:
                state = finished.state
        return state

    def fetch(self, state: State, step: Step) -> Finished:
        """One stage: from the store, or run and stored."""
        key, started = self.key(step), time.perf_counter()
        provides, before = step.stage.provides, shown(state, step.stage, step.name)
        stage_begins(step.name, key)

        def make(work: Path) -> None:
            begun, context = time.perf_counter(), context_for(self.context, step.stage, step.name)
            outcome = step.stage.run(before, context, name=step.name, work=work)
            if "model" in provides and outcome.state.model is not None:
                check_kept(outcome.state.model, step.stage, before, self.context, name=step.name)
                outcome = replace(outcome, collapse=collapse(step.stage, before, outcome.state, self.context))
            if rank() == 0:
                save_outcome(outcome, provides, work, seconds=time.perf_counter() - begun)

        def load(folder: Path) -> tuple[Outcome, float]:
            network = partial(network_for, step.stage, before, self.context)
            return load_outcome(before, folder, self.context, provides, network)

        here = made_with(self.context.hardware)
        describe = {"stage": step.config, "common": self.common, "mark": step.mark, "with": here}
        (outcome, seconds), hit = self.store.fetch(kind_of(step), key, make=make, load=load, describe=describe)
        if outcome.collapse is not None:
            self.context.say(LINE.format(name=step.name, **outcome.collapse))
        if not step.stage.control:
            self.keys.update(dict.fromkeys(provides, key))
        spent = seconds if hit else time.perf_counter() - started
        other = self.other(step, key, here) if hit else {}
        end = merged(state, outcome.state, provides)
        return Finished(step, before, end, key, hit, spent, outcome.history, other, outcome.collapse)

    def other(self, step: Step, key: str, here: Mapping[str, Any]) -> dict[str, Any]:
        """`Finished.stored_with` of a stage from the store; says so if there is any."""
        about = self.store.about(kind_of(step), key)
        found = differing(about.get("with") if isinstance(about, dict) else None, here)
        if found:
            listed = ", ".join(f"{name} {value} (here {here[name]})" for name, value in found.items())
            self.context.say(
                f"{step.name}: from the store, made with {listed}; its digits may differ from what would be trained "
                "here (store.dir= another folder trains it anew)"
            )
        return found
