"""ABL: Anti-Backdoor Learning (Li et al., NeurIPS 2021, arXiv 2110.11571)."""

from backdoor.defenses.abl.isolation import LossGapIsolation
from backdoor.defenses.abl.method import lowest_rows, signed_floor
from backdoor.defenses.abl.module import GradientAscent, JointAscent, LocalGradientAscent

__all__ = [
    "GradientAscent",
    "JointAscent",
    "LocalGradientAscent",
    "LossGapIsolation",
    "lowest_rows",
    "signed_floor",
]
