"""A poison-only attack on labels as CIFAR-10 has them."""

from __future__ import annotations

import torch

from backdoor.attacks import (
    AllToOne,
    PoisonGroup,
    PoisonOnly,
)
from backdoor.triggers import Patch

CIFAR_LABELS = torch.arange(10).repeat_interleave(5000)


GRID = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]


def attack(ratio=0.1, ratio_of="train", eligible="all", label_map=None, trigger=None) -> PoisonOnly:
    label_map = label_map or AllToOne(target=0)
    trigger = trigger or Patch(pattern=GRID)
    group = PoisonGroup(ratio, label_map, trigger, ratio_of, eligible)
    return PoisonOnly(name="test", groups={"poison": group}, label_map=label_map, trigger=trigger)
