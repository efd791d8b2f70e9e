"""Input-aware dynamic backdoor attack (Nguyen and Tran, NeurIPS 2020, arXiv 2010.08138); ABL's "Dynamic"."""

from backdoor.attacks.controlled import cover_group
from backdoor.attacks.inputaware.module import InputAwareTraining, MaskTraining
from backdoor.attacks.inputaware.stage import HandOver, LearnMask
from backdoor.attacks.inputaware.trigger import CrossTrigger, InputAware
from backdoor.attacks.plan import PoisonGroup
from backdoor.checking.ranges import Seed


def cross_group(poison: PoisonGroup, *, seed: Seed = 0) -> PoisonGroup:
    """The rows of the fixed train set that get another image's trigger and their true label, as many as are poisoned.

    Raises:
        UserError: a label map or a pool that the training cannot follow, a ratio too large.
    """
    return cover_group(poison, times=1.0, trigger=CrossTrigger(seed=seed), setting="as many cross rows")


__all__ = [
    "CrossTrigger",
    "HandOver",
    "InputAware",
    "InputAwareTraining",
    "LearnMask",
    "MaskTraining",
    "cross_group",
]
