"""What the tests of triggers share: settings from conf/trigger, small images, and what changed in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from backdoor.triggers import Trigger

CONF = Path(__file__).parents[2] / "conf" / "trigger"
SIZES = (32, 64, 224)
PATCHES = {"grid": 9, "square": 9, "corners": 36, "dbd_patch": 4, "trojan": 9}  # pixels changed at 32x32
# The watermark's square on grey of level 128, modulo 256.
WRAPPED = [
    [[79, 47, 157], [207, 9, 120], [3, 134, 118]],
    [[3, 115, 104], [136, 128, 241], [168, 17, 122]],
    [[53, 248, 51], [254, 160, 18], [132, 189, 118]],
]


def white_file(folder: Path) -> str:
    path = folder / "white.png"
    Image.new("RGB", (5, 5), (255, 255, 255)).save(path)
    return str(path)


def load(name: str, picture: str, **changes: Any) -> Trigger:
    """The trigger of conf/trigger/<name>.yaml, a required path filled in."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    missing = OmegaConf.missing_keys(config)
    for key in missing:
        OmegaConf.update(config, key, picture)
    trigger = instantiate(OmegaConf.merge(config, changes), _convert_="all")
    assert isinstance(trigger, Trigger)
    return trigger


def plain(level: int, side: int = 32, channels: int = 3) -> Tensor:
    return torch.full((1, channels, side, side), level, dtype=torch.uint8)


def photos(count: int = 3, side: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(side + channels)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def sums(images: Tensor) -> list[int]:
    return images[0].long().sum((1, 2)).tolist()


def changed(before: Tensor, after: Tensor) -> Tensor:
    """bool (H, W): pixels of the first image that differ in any channel."""
    return (before[0] != after[0]).any(0)
