"""What an attacker makes before poisoning: surrogates, patterns, encoders, or the backdoored model itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from backdoor.data.loader import mix
from backdoor.data.sources import DataSet
from backdoor.loggers.console import crafted_line
from backdoor.stages import Finished, Pipeline, Step
from backdoor.state import Split, State
from backdoor.store.digest import split_digest
from backdoor.store.store import Store, fingerprint
from backdoor.training.context import RunContext
from backdoor.training.observing import epoch_resumed

# Sets the attacker's draws apart from the victim's.
ATTACKER = 0xA77


@dataclass(frozen=True)
class Crafted:
    """What came of an attack's stages.

    Attributes:
        findings: for the attack's triggers.
        steps: the stages as they ended.
        victim: the stage that trained the backdoored model, if the attack controls the training.
        short: that stage was cut to one epoch, for a preview.
    """

    findings: dict[str, Any]
    steps: tuple[Finished, ...] = ()
    victim: Finished | None = None
    short: bool = False


def craft(
    steps: list[Step],
    train: Split,
    data: DataSet,
    store: Store,
    context: RunContext,
    common: Any,
    *,
    preview: bool = False,
) -> Crafted:
    """Run an attack's stages on the clean train set; each is an artifact, so it is trained once for all runs.

    The attacker knows the data that it poisons and nothing else: no test image is handed on.

    Args:
        preview: a victim that the store does not have is trained for one epoch, under a key of its own.
    """
    if not steps:
        return Crafted({})
    nothing = torch.empty(0, dtype=torch.int64)
    keys = {"train": fingerprint([data.num_classes, split_digest(train, nothing, base=data.train.digest)])}
    finished: list[Finished] = []

    def report(one: Finished) -> None:
        finished.append(one)
        if one.step.name != "victim":  # the victim gets a row of the table, once there is a test set for it
            for row in one.history if one.hit else ():
                epoch_resumed(dict(row))
        if one.step.name != "victim" or one.numbers():
            crafted_line(one.step.name, one.numbers(), one.seconds, hit=one.hit)

    # A surrogate that began at the victim's own initial weights would know more than an attacker can.
    own = replace(context, seed=mix(context.seed, ATTACKER))
    pipeline = Pipeline(store, own, keys=keys, common=common)
    state, short = State(train, data.num_classes), False
    for step in steps:
        if preview and step.name == "victim" and not pipeline.stored(step):
            pipeline, short = pipeline.capped(1), True
            context.say("victim        (attacker) is not in the store: trained for one epoch, for this preview alone")
        state = pipeline.run(state, [step], report, what="attack")
    victim = next((one for one in finished if one.step.name == "victim"), None)
    return Crafted(dict(state.findings), tuple(finished), victim, short)
