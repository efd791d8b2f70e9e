"""`bd.poison`: an attack on a data set that a Python program has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from backdoor.attacks import Means, PoisonOnly
from backdoor.configs.class_names import check_classes
from backdoor.configs.in_process import compose_job, told
from backdoor.data.given import Given, given_pictures
from backdoor.data.sources import DataSet, Source
from backdoor.errors import UserError
from backdoor.experiment.attacker import craft
from backdoor.experiment.datasets import PoisonedData, Transform, poisoned_data
from backdoor.experiment.preparation import Preparation
from backdoor.experiment.process import working
from backdoor.state import Split

OURS = ("data", "defense", "victim")  # choices that have no place here
DEFAULTS = ("data=arrays", "data.train=given", "data.channels=null", "reserved=0", "defense=none")


def poison(
    data: Any,
    *words: str,
    test: Any = None,
    classes: Sequence[str] | None = None,
    transform: Transform | None = None,
    test_transform: Transform | None = None,
    **settings: Any,
) -> PoisonedData:
    """Poison a data set.

    The images are copied into the store (`store.dir`), where equal ones lie once, and stay on the disk while they are
    used. An attack that trains something first (LC, SSBA, TrojanNN, LF) trains it once for the same images.

    Args:
        data: the train set: anything with `len()` whose items are (image, label), as torchvision's data sets, where an
            image is a PIL image or a uint8 or float [0, 1] tensor or array; or a pair (images, labels) of arrays, uint8
            (N, H, W), (N, H, W, C) or (N, C, H, W), and integers (N,).
        words: as in the shell: `"attack=blended"`, `"attack.ratio=0.05"`, `"attack.target=cat"`, `"data.image_size=32"`
            to resize, `"data.channels=3"` to make grey images RGB.
        test: test images of the same kind, to measure with.
        classes: names of class 0, 1, ...; None: `data.classes`, or else numbers.
        transform, test_transform: of PIL images, for the resulting data sets; None: float32 tensors in [0, 1].
        settings: words as keywords: `seed=0`, `**{"attack.ratio": 0.05}`.

    Raises:
        UserError: a word that does not fit, items without labels, images of several sizes, an attack that trains the
            victim itself.
    """
    names = list(map(str, getattr(data, "classes", None) or ())) if classes is None else list(classes)
    for word in [*words, *settings]:
        if word.partition("=")[0].lstrip("+~") in OURS:
            raise UserError(f"{word}: has no place in bd.poison, which is given the data and defends nothing")
    job = compose_job([*DEFAULTS, *words], {**settings, "data.classes": names or None})
    try:
        with working(job.cfg.threads):
            return carry_out(job.cfg, data, test).use(transform, test_transform)
    except Exception as error:
        raise told(error) from error


def carry_out(cfg: DictConfig, train: Any, test: Any) -> PoisonedData:
    """Poison as a run would, up to where its victim would be trained."""
    job = Preparation(cfg, given(cfg, train, test))
    attack = job.attack
    if not isinstance(attack, PoisonOnly):
        raise UserError(f"attack={attack.name}: poisons nothing itself; choose another, as attack=badnets")
    if "victim" in attack.stages:
        raise UserError(
            f"attack={attack.name}: trains the victim itself, so the data alone are not the attack; bd.run it on the "
            "data and take .poisoned of that run, or choose another attack"
        )
    data = job.load()
    clean, clean_test = splits(job, data, has_test=test is not None)
    crafted = craft(job.crafting, clean, data, job.store, job.context(data), job.common(data))
    means = Means(cfg.seed, job.store.root, crafted.findings, job.hardware.device)
    made = attack.prepare(data, clean, clean_test, means)
    trigger = None if attack.trigger is None else attack.trigger.at_test()
    return poisoned_data(
        attack.name,
        made.train,
        made.truth,
        data.classes,
        plan=made.plan,
        trigger=trigger,
        has_test=test is not None,
    )


def given(cfg: DictConfig, train: Any, test: Any) -> Source:
    """The caller's images with the settings of `data`; without test images the train images stand in for them."""
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    kept = {name: value for name, value in settings.items() if name not in ("_target_", "train", "test")}
    if any((kept.get("limit") or {}).values()):
        raise UserError("data.limit: has no place in bd.poison; give it fewer images")
    arrays: Source = instantiate(cfg.data, _convert_="all")  # checks the settings
    pictures = given_pictures(train, "data", arrays.channels, arrays.size)
    held_out = pictures if test is None else given_pictures(test, "test", arrays.channels, arrays.size)
    return Given(**kept, train=pictures, test=held_out)


def splits(job: Preparation, data: DataSet, *, has_test: bool) -> tuple[Split, Split]:
    """The clean train and test sets; a row of each class stands in for a test set, which nobody will see."""
    if job.cfg.reserved:
        raise UserError(f"reserved={job.cfg.reserved}: has no place in bd.poison; set rows aside before you call it")
    train, test = data.train.open(), data.test.open()
    check_classes(job.cfg.attack, data.classes)
    job.attack.check(data.num_classes, data.shape, train.labels)
    if has_test:
        return train, test
    first = [(train.labels == label).nonzero().flatten()[:1] for label in range(data.num_classes)]
    return train, test.take(torch.cat(first))
