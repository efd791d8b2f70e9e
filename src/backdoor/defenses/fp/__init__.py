"""Fine-Pruning (Liu, Dolan-Gavitt, Garg, RAID 2018, arXiv 1805.12185)."""

from backdoor.defenses.fp.callback import KeepPruned
from backdoor.defenses.fp.method import dormant_first, last_accepted, pruning_levels
from backdoor.defenses.fp.stage import PruneDormant
from backdoor.defenses.fp.unit import Unit, find_unit, prune_channels

__all__ = [
    "KeepPruned",
    "PruneDormant",
    "Unit",
    "dormant_first",
    "find_unit",
    "last_accepted",
    "prune_channels",
    "pruning_levels",
]
