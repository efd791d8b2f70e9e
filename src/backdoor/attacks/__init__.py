"""Attacks: what is poisoned, with which trigger, under which label."""

from backdoor.attacks.base import Attack, Means, Poisoned
from backdoor.attacks.external import External
from backdoor.attacks.finished_run import FinishedRun
from backdoor.attacks.label_maps import (
    AllToAll,
    AllToOne,
    CleanLabel,
    LabelMap,
    RandomLabel,
    SourceSpecific,
    TrueLabel,
)
from backdoor.attacks.plan import PoisonGroup, PoisonPlan
from backdoor.attacks.poison_only import PoisonOnly

__all__ = [
    "AllToAll",
    "AllToOne",
    "Attack",
    "CleanLabel",
    "External",
    "FinishedRun",
    "LabelMap",
    "Means",
    "PoisonGroup",
    "PoisonOnly",
    "PoisonPlan",
    "Poisoned",
    "RandomLabel",
    "SourceSpecific",
    "TrueLabel",
]
