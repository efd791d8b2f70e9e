"""The attack of a finished run, as its folder has it: nothing is drawn or trained again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdoor.attacks.base import Means, Poisoned
from backdoor.attacks.plan import PoisonPlan
from backdoor.attacks.poison_only import PoisonOnly
from backdoor.data.sources import DataSet
from backdoor.errors import UserError
from backdoor.state import Split
from backdoor.store.run_folder import RunFolder
from backdoor.store.weights import read_tensors

SETTING = "attack.run"


class FinishedRun(PoisonOnly):
    """`PoisonOnly` whose rows, triggers and victim are those of a run's folder (`attack=external attack.run=...`).

    The folder is not trusted: it is read as npz without objects and as safetensors, and checked against the data.

    Args:
        run: the folder; `plan.npz`, `weights/victim.safetensors` and, where triggers have tensors,
            `trigger.safetensors` are read.
        attack: the run's own settings of `PoisonOnly`, without stages.
    """

    def __init__(self, *, run: str, **attack: Any) -> None:
        super().__init__(**attack)
        self.folder, self.source = RunFolder(Path(run).expanduser()), f"{SETTING}={run}"
        self.inputs = frozenset({"model"})

    def plan(self, labels: Tensor, num_classes: int, seed: int) -> PoisonPlan:
        """The saved plan; `seed` is not needed.

        Raises:
            UserError: a damaged file, or one that is not about these labels int64 (N,).
        """
        plan = PoisonPlan.load(self.folder.plan, SETTING, num_classes)
        if plan.roles != tuple(self.groups) or plan.total != len(labels) or not self.changes(plan, labels, num_classes):
            raise UserError(
                f"{self.source}: plan.npz is about other images: {plan.total} train rows with roles "
                f"{', '.join(plan.roles)[:200]}; these data have {len(labels)} and other labels or roles; set "
                "data.root to the images of that run"
            )
        return replace(plan, covers=self.covers())  # an older plan does not tell them

    def changes(self, plan: PoisonPlan, labels: Tensor, num_classes: int) -> bool:
        """Whether the plan's labels are what each group makes of the clean ones."""
        for number, group in enumerate(self.groups.values()):
            rows = plan.role == number
            if not torch.equal(plan.labels[rows], group.label_map.poisoned(labels[plan.rows[rows]], num_classes)):
                return False
        return True

    def equip(self, findings: Mapping[str, Any], device: torch.device | None) -> None:
        """Give the triggers what the run's attacker made; `findings` are not needed.

        Raises:
            UserError: a file that is missing, damaged or made with other settings.
        """
        path = self.folder.trigger
        needed = self.needs() or self.tensors()
        saved = read_tensors(path, SETTING) if needed else {}
        try:
            found = {name: one for trigger in self.triggers() for name, one in trigger.findings_in(saved).items()}
            super().equip(found, device)
            made = self.tensors()
        except (KeyError, IndexError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{self.source}: trigger.safetensors does not hold what this attack needs ({error}); make the run "
                "again: what it trained may still be in the store"
            ) from None
        theirs = {name: saved.get(name) for name in {*made, *saved}} if needed else {}
        if any(
            one is None or name not in made or not torch.equal(made[name].cpu(), one) for name, one in theirs.items()
        ):
            raise UserError(
                f"{self.source}: trigger.safetensors and config.yaml do not agree; use the files of one run"
            )

    def prepare(self, data: DataSet, train: Split, test: Split, means: Means) -> Poisoned:
        """As the run did, with its victim.

        Raises:
            UserError: other images than that run's, bit for bit.
        """
        self.plan(train.labels, data.num_classes, means.seed)  # a damaged file is refused here
        theirs = PoisonPlan.digests(self.folder.plan, SETTING)
        if theirs and theirs != (data.train.digest, data.test.digest):
            raise UserError(
                f"{self.source}: the images of data={data.name} are others than those of that run; set data.root "
                "(data.train, data.test) to the images that it had"
            )
        poisoned = super().prepare(data, train, test, means)
        return replace(poisoned, checkpoint=self.folder.weights("victim"), setting=SETTING)
