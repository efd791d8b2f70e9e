"""What `python -m backdoor.preview` does: an attack up to its triggers, on a few images; no victim is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from backdoor.attacks import Attack, PoisonOnly
from backdoor.attacks.poison_only import stamp
from backdoor.data.sources import DataSet
from backdoor.errors import UserError
from backdoor.experiment.attacker import Crafted, craft
from backdoor.experiment.build import checked
from backdoor.experiment.place import Place
from backdoor.experiment.preparation import Preparation
from backdoor.experiment.process import working
from backdoor.figures.preview import Look, preview_figure, preview_table
from backdoor.metrics.visibility import spectrum, visibility
from backdoor.stages import Step
from backdoor.state import Split
from backdoor.store.store import write_json
from backdoor.triggers.base import Trigger

SCHEMA = 1
SHORT = "preview after one epoch"


def run(cfg: DictConfig, place: Place) -> dict[str, Any]:
    """Preview the attack of `cfg`: preview.png and preview.json in `place.folder`, and a table.

    Returns:
        What preview.json holds.

    Raises:
        UserError: a setting that does not fit, or an attack that plants nothing.
    """
    with working(cfg.threads):
        return Preview(cfg, place.folder).run()


def check(cfg: DictConfig, *, here: bool = True) -> None:
    """Refuse a config whose preview would fail before it reads any data; raises UserError as `run`."""
    planted(checked(cfg, here=here).attack)


def planted(attack: Attack) -> PoisonOnly:
    """The attack, if it plants a trigger of its own.

    Raises:
        UserError: nothing is planted, or somebody else did it.
    """
    if isinstance(attack, PoisonOnly) and attack.groups:
        return attack
    raise UserError(
        f"attack={attack.name}: plants no trigger, so there is nothing to preview; choose an attack that does, "
        "for instance attack=badnets"
    )


class Preview(Preparation):
    """One preview, made from its config.

    Args:
        folder: where the figure and the numbers go.
    """

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        super().__init__(cfg)
        self.planted, self.folder = planted(self.attack), folder

    def run(self) -> dict[str, Any]:
        """The attack's stages, its triggers, their looks."""
        data = self.load()
        train, test, _ = self.splits(data)
        context, common = self.context(data), self.common(data)
        crafted = craft(self.needed(), train, data, self.store, context, common, preview=True)
        self.planted.equip(crafted.findings, self.hardware.device)
        looks = [*self.at_test(test, data.num_classes), *self.in_training(train, data.num_classes)]
        return self.report(looks, crafted, data)

    def needed(self) -> list[Step]:
        """The attack's stages, without a victim whose training makes no trigger (WaNet's warp is fixed before it)."""
        attack = self.planted
        return [step for step in self.crafting if step.name != "victim" or step.stage.provides & attack.needs()]

    def at_test(self, test: Split, num_classes: int) -> Iterator[Look]:
        """The test-time trigger on test images that the attack changes."""
        attack = self.planted
        if attack.label_map is None or attack.trigger is None:
            return
        victims = attack.label_map.victims(test.labels, num_classes).nonzero().flatten()
        clean = test.take(self.some(victims))
        made = attack.attack_set(clean, num_classes)
        assert made is not None
        yield self.look("test", clean.images, made.split.images, clean.labels, made.goal.wanted(clean.labels))

    def in_training(self, train: Split, num_classes: int) -> Iterator[Look]:
        """The trigger of each group of train rows, where it differs from the one at test time."""
        attack = self.planted
        plan = attack.plan(train.labels, num_classes, self.cfg.seed)
        for number, (name, group) in enumerate(attack.groups.items()):
            mine = (plan.role == number).nonzero().flatten()
            if group.trigger is None or len(mine) == 0:
                continue
            mine = self.some(mine)
            rows = plan.rows[mine]
            clean = train.take(rows)
            triggered = stamped(clean, group.trigger)
            if attack.trigger is None or not torch.equal(triggered, stamped(clean, attack.trigger.at_test())):
                yield self.look(f"train ({name})", clean.images, triggered, clean.labels, plan.labels[mine])

    def some(self, rows: Tensor) -> Tensor:
        """At most `preview.measured` of the rows, evenly spread; those that are shown come first."""
        measured = min(len(rows), int(self.cfg.preview.measured))
        spread = rows[torch.linspace(0, len(rows) - 1, measured).long()]
        first = torch.linspace(0, measured - 1, min(measured, int(self.cfg.preview.images))).long()
        shown = torch.zeros(measured, dtype=torch.bool)
        shown[first] = True
        return torch.cat([spread[shown], spread[~shown]])

    def look(self, name: str, clean: Tensor, triggered: Tensor, labels: Tensor, targets: Tensor | None) -> Look:
        """Measure all images and keep the first few."""
        few = slice(self.cfg.preview.images)
        shown = None if targets is None else targets[few]
        found, waves = visibility(clean, triggered), spectrum(clean, triggered)
        return Look(name, clean[few], triggered[few], labels[few], shown, waves, found)

    def report(self, looks: list[Look], crafted: Crafted, data: DataSet) -> dict[str, Any]:
        """The figure, the table and the file."""
        name, path = self.attack.name, self.folder / "preview.png"
        title, note = f"attack={name} on {data.name}, seed {self.cfg.seed}", ""
        if crafted.short:
            title = f"{title}: {SHORT}"
            note = "This attack trains the victim itself: these triggers are what one epoch of that made of them."
        preview_figure(looks, path, title, note=note, classes=data.classes)
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "data": data.name,
            "attack": name,
            "seed": self.cfg.seed,
            "note": SHORT if crafted.short else None,
            "triggers": {look.name: dict(look.numbers) for look in looks},
        }
        write_json(self.folder / "preview.json", result)
        self.say(title)
        preview_table(looks)
        if crafted.short:
            self.say(f"{SHORT}: the victim of a full run is not in the store, and its trigger will differ")
        self.say(f"Figure: {path}")
        return result


def stamped(clean: Split, trigger: Trigger) -> Tensor:
    """A triggered copy of the images, uint8 (n, C, H, W)."""
    copy = clean.images.clone()
    stamp(copy, torch.arange(len(copy)), trigger, clean.index)
    return copy
