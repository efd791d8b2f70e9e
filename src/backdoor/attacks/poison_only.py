"""Attacks as a list of poisoned groups, with whatever the attacker makes first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from backdoor.attacks.aims import Aim, alike, targets_of
from backdoor.attacks.base import Means, Poisoned
from backdoor.attacks.label_maps import LabelMap
from backdoor.attacks.plan import PoisonGroup, PoisonPlan
from backdoor.checking.ranges import Share
from backdoor.data.sources import DataSet
from backdoor.errors import UserError
from backdoor.stages.base import Stage
from backdoor.state import AttackSet, Split, Truth
from backdoor.triggers.base import Shape, Trigger


class PoisonOnly:
    """Poisoning as a list of groups; no group at all is the clean baseline (`attack=none`).

    The trigger is applied to the raw images, before augmentation, and rounded to 8 bit like a file on disk
    (COMMON conventions of BackdoorBench and ABL). The same trigger makes the ASR test set.

    Args:
        name: shown in tables.
        groups: name -> group. Groups are drawn one after the other and never share a row.
        label_map: the attacker's goal at test time.
        trigger: the test-time trigger (its `at_test()` version). Groups with others are measured too: see `aims`.
        stages: name -> stage, run by the attacker on the clean train set; their findings are handed to the triggers
            (`Trigger.equip`). With a stage named `victim` the attack controls the training: that stage's model is
            the victim, and the groups make the fixed poisoned train set that in-training defenses get.
        ratio, ratio_of, eligible, target: the attack's headline settings, which the config of `groups` and
            `label_map` refers to; kept for tables.
    """

    def __init__(
        self,
        *,
        name: str,
        groups: Mapping[str, PoisonGroup] | None = None,
        label_map: LabelMap | None = None,
        trigger: Trigger | None = None,
        stages: Mapping[str, Stage] | None = None,
        ratio: Share = 0.0,
        ratio_of: str = "train",
        eligible: str = "all",
        target: int | None = None,
    ) -> None:
        self.name, self.ratio, self.target = name, ratio, target
        self.groups = dict(groups or {})
        if trigger is None and label_map is not None and self.groups:
            raise UserError("attack.trigger=null: expected a trigger, as the attack has a label map")
        self.label_map, self.trigger = label_map, trigger
        for group, one in self.groups.items():
            # A group may change labels alone, but then it is not the one whose trigger is measured.
            if one.trigger is None and trigger is not None and alike(one.label_map, label_map):
                raise UserError(f"attack.groups.{group}.trigger=null: expected a trigger, as the attack has one")
        self.stages = {stage: made for stage, made in (stages or {}).items() if made.enabled}
        self.inputs = frozenset({"model"}) if "victim" in self.stages else frozenset[str]()

    def plan(self, labels: Tensor, num_classes: int, seed: int) -> PoisonPlan:
        """Draw the rows: int64 labels (N,) -> plan; the same seed gives the same rows.

        Raises:
            UserError: a ratio that the pool cannot fill.
        """
        generator = torch.Generator().manual_seed(seed)
        free = torch.ones(len(labels), dtype=torch.bool)
        rows, new, role = [], [], []
        for number, group in enumerate(self.groups.values()):
            drawn = group.draw(labels, num_classes, free, generator)
            free[drawn] = False
            rows.append(drawn)
            new.append(group.label_map.poisoned(labels[drawn], num_classes))
            role.append(torch.full_like(drawn, number))
        if not rows:
            return PoisonPlan.none(len(labels))
        roles = tuple(self.groups)
        return PoisonPlan(torch.cat(rows), torch.cat(new), torch.cat(role), roles, len(labels), self.covers())

    def covers(self) -> tuple[str, ...]:
        """The groups whose rows are no poison."""
        return tuple(name for name, group in self.groups.items() if group.cover)

    def poison(self, train: Split, plan: PoisonPlan) -> Split:
        """Carry out `plan` on `train`, whose images are written IN PLACE (a copy-on-write map or a private copy)."""
        labels = train.labels.clone()
        labels[plan.rows] = plan.labels
        for number, group in enumerate(self.groups.values()):
            if group.trigger is not None:
                stamp(train.images, plan.rows[plan.role == number], group.trigger, train.index)
        return Split(train.images, labels, train.index)

    def aims(self, num_classes: int) -> dict[str, Aim]:
        """What the attacker wants at test time: name -> trigger and label map, each measured by itself.

        The first is the attack's own `trigger` and `label_map`, by the name of the group that has them (`""` if none
        has). Each further group that is no cover and has a trigger is another one, unless trigger and label map are
        those of an earlier one.
        """
        found: dict[str, Aim] = {}
        if self.trigger is not None and self.label_map is not None:
            found[""] = Aim(self.trigger.at_test(), self.label_map)
        for name, group in self.groups.items():
            if group.cover or group.trigger is None:
                continue
            aim = Aim(group.trigger.at_test(), group.label_map)
            same = next((key for key, other in found.items() if aim.same(other, num_classes)), None)
            if same is None:
                found[name] = aim
            elif same == "":  # its place stays the first
                found = {name if key == "" else key: one for key, one in found.items()}
        return found

    def attack_set(self, test: Split, num_classes: int) -> AttackSet | None:
        """The first ASR set; None without a trigger."""
        aims = self.aims(num_classes).values()
        return next((attack_set(test, num_classes, aim) for aim in aims), None)

    def check(self, num_classes: int | None, shape: Shape | None, labels: Tensor | None = None) -> None:
        """Raises UserError for a label map, a trigger or a ratio that does not fit the data."""
        if self.label_map is not None and not self.groups:
            raise UserError(f"label_map: attack={self.name} poisons nothing, so it takes no label map; leave it out")
        if num_classes is not None:
            for group in self.groups.values():
                group.check(num_classes)
            if self.label_map is not None:
                self.label_map.check(num_classes)
            if labels is not None:
                self.plan(labels, num_classes, seed=0)
        for trigger in self.triggers():
            if shape is not None:
                trigger.check(shape)

    def triggers(self) -> list[Trigger]:
        """Those of the groups, and the one of test time."""
        all_of_them = [*(group.trigger for group in self.groups.values()), self.trigger]
        return [trigger for trigger in all_of_them if trigger is not None]

    def needs(self) -> set[str]:
        """The findings without which a trigger cannot paint yet."""
        return {name for trigger in self.triggers() for name in trigger.needs}

    def tensors(self) -> dict[str, Tensor]:
        """The state_dicts of all triggers; where two have a name in common, the one of test time has it."""
        return {name: value for trigger in self.triggers() for name, value in trigger.state_dict().items()}

    def equip(self, findings: Mapping[str, Any], device: torch.device | None) -> None:
        """Hand the triggers what the stages found."""

        def ready(trigger: Trigger | None) -> Trigger | None:
            return None if trigger is None else trigger.equip(findings).ready_on(device)

        self.trigger = ready(self.trigger)
        self.groups = {name: replace(group, trigger=ready(group.trigger)) for name, group in self.groups.items()}

    def prepare(self, data: DataSet, train: Split, test: Split, means: Means) -> Poisoned:
        """Poison `train` (in place) and build the evaluator's truth."""
        self.equip(means.findings, means.device)
        self.check(data.num_classes, data.shape)
        plan = self.plan(train.labels, data.num_classes, means.seed)
        aims = self.aims(data.num_classes)
        truth = Truth(
            test_clean=test,
            attacks={name: attack_set(test, data.num_classes, aim) for name, aim in aims.items()},
            poisoned=plan.mask(without=plan.covers),
            clean_labels=train.labels,
            targets=targets_of(aim.label_map for aim in aims.values()),
        )
        return Poisoned(self.poison(train, plan), truth, plan, tensors=self.tensors())


def attack_set(test: Split, num_classes: int, aim: Aim) -> AttackSet:
    """Test images of the classes that the label map changes, triggered, with their true labels.

    Raises:
        UserError: there is none.
    """
    rows = aim.label_map.victims(test.labels, num_classes).nonzero().flatten()
    if len(rows) == 0:
        raise UserError("attack.label_map: the test set has no image of a class that the attack changes")
    triggered = test.take(rows)
    stamp(triggered.images, torch.arange(len(rows)), aim.trigger, triggered.index)
    return AttackSet(triggered, aim.label_map.goal(num_classes))


def stamp(images: Tensor, rows: Tensor, trigger: Trigger, index: Tensor | None = None) -> None:
    """Apply `trigger` to the given rows of uint8 images (N, C, H, W) on the CPU, in place.

    Args:
        index: int64 (N,), what the trigger seeds its per-image draws with; the row itself if None.
    """
    trigger.write(images, rows, rows if index is None else index[rows])
