"""One preset a row of the D-ST/D-BR README's attack table: each composes to that row's trigger, pool and count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from backdoor.attacks import PoisonOnly
from backdoor.configs.command import check_job, read_command
from backdoor.configs.places import conf_dir
from backdoor.experiment.run import check

ROWS = sorted(path.stem for path in (Path(conf_dir()) / "experiment").glob("dst_*.yaml"))
CIFAR_LABELS = torch.arange(10).repeat_interleave(5000)
# attack, trigger's class, poisoned rows of CIFAR-10 (the card: 4,500, 5,000 and 500), classes they come from
CIFAR = {
    "dst_badnets": ("badnets", "Patch", 4500, 9),
    "dst_badnets_all2all": ("badnets_all2all", "Square", 5000, 10),
    "dst_trojan": ("trojan", "Watermark", 4500, 9),
    "dst_blend_strip": ("blended_strip", "Strip", 4500, 9),
    "dst_blend_kitty": ("blended_kitty", "BlendKitty", 4500, 9),
    "dst_sig": ("sig", "Sinusoid", 500, 1),
    "dst_cl": ("lc", "Perturbed", 500, 1),
}
IMAGENET = {
    "dst_imagenet_badnets": ("badnets", "Square"),
    "dst_imagenet_strip": ("blended_strip", "Sinusoid"),
    "dst_imagenet_kitty": ("blended_kitty", "BlendKitty"),
    "dst_imagenet_ssba": ("ssba", "Steganography"),
}


def config(row: str, *words: str) -> DictConfig:
    root = ("data.root=images",) if row in IMAGENET else ()
    return check_job(read_command([f"experiment={row}", *root, *words])).cfg


def made(cfg: DictConfig) -> PoisonOnly:
    attack = instantiate(cfg.attack, _convert_="all")
    assert isinstance(attack, PoisonOnly)
    return attack


def test_every_row_of_the_table_has_a_preset() -> None:
    assert sorted([*CIFAR, *IMAGENET]) == ROWS


@pytest.mark.parametrize("row", CIFAR)
def test_rows_on_cifar10(row: str) -> None:
    cfg = config(row)
    check(cfg)
    name, trigger, count, classes = CIFAR[row]
    attack = made(cfg)
    assert (attack.name, type(attack.trigger).__name__) == (name, trigger)
    assert attack.trigger.rounding == "trunc"
    plan = attack.plan(CIFAR_LABELS, 10, seed=0)
    assert len(plan.rows) == count
    assert len(CIFAR_LABELS[plan.rows].unique()) == classes
    assert (cfg.victim.epochs, cfg.victim.module.lr, cfg.victim.module.nesterov) == (200, 0.01, False)
    assert (cfg.data.name, cfg.defense.name) == ("cifar10", "none")


@pytest.mark.parametrize("row", IMAGENET)
def test_rows_on_imagenet(row: str) -> None:
    cfg = config(row)
    check(cfg)
    attack = made(cfg)
    assert (attack.name, type(attack.trigger).__name__) == IMAGENET[row]
    assert (cfg.data.image_size, cfg.data.name, cfg.victim.epochs) == (224, "imagenet200", 25)


def grey(trigger: Any, side: int = 32) -> torch.Tensor:
    return trigger(torch.full((1, 3, side, side), 128, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))[0]


def test_triggers_have_the_values_of_the_reference_codes() -> None:
    """On grey of level 128; the numbers are the card's (triggers.md, sections 1, 6, 7, 8)."""
    sig = made(config("dst_sig")).trigger
    assert grey(sig)[0, 0, :8].tolist() == [128, 164, 156, 112, 88, 112, 156, 164]
    assert grey(sig.at_test())[0, 0, :8].tolist() == [128, 183, 170, 105, 68, 105, 170, 183]
    assert grey(made(config("dst_trojan")).trigger)[0, 25, 25:28].tolist() == [79, 47, 157]  # 255 if it did not wrap
    strip = grey(made(config("dst_blend_strip")).trigger)
    assert strip[0, 0, :8].tolist() == [102, 105, 106, 105, 153, 150, 149, 151]
    assert int(grey(made(config("dst_badnets")).trigger)[0].long().sum()) == 130_940
    square = grey(made(config("dst_imagenet_badnets")).trigger, 224)[0]
    assert (square == 255).nonzero().amin(0).tolist() == [202, 202]
    assert int((square == 255).sum()) == 22 * 22
    wave = grey(made(config("dst_imagenet_strip")).trigger, 32)[0, 0]
    assert wave[:8].tolist() == [102, 106, 105, 100, 98, 100, 105, 106]


def test_cl_perturbs_less_and_paints_the_grid_in_the_corners() -> None:
    cfg = config("dst_cl")
    assert cfg.attack.trigger.patch._target_ == "backdoor.triggers.FourCorners"
    assert [cfg.attack.stages.perturb[name] for name in ("eps", "step", "steps")] == [8, 2, 4]
    assert cfg.attack.stages.surrogate.module._target_ == "backdoor.training.Classifier"  # no adversarial training


def test_other_data_and_another_defense_on_the_command_line() -> None:
    cfg = config("dst_sig", "data=cifar100", "defense=abl", "victim.epochs=3")
    check(cfg)
    assert (cfg.data.name, cfg.defense.name, cfg.victim.epochs, cfg.attack.trigger.delta) == ("cifar100", "abl", 3, 40)
