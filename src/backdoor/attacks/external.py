"""A user's own suspicious data, model or isolated rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from backdoor.attacks.aims import targets_of
from backdoor.attacks.base import Means, Poisoned
from backdoor.attacks.label_maps import AllToOne, LabelMap
from backdoor.attacks.poison_only import PoisonOnly
from backdoor.attacks.rows import named_rows, npz_rows
from backdoor.data.sources import DataSet, load_images
from backdoor.errors import UserError
from backdoor.stages.base import Stage
from backdoor.state import AttackSet, Split, Truth
from backdoor.store.npz import open_npz
from backdoor.triggers.base import Shape, Trigger


class External:
    """Somebody else's poison: nothing is planted, what is unknown stays absent from the result.

    Args:
        train: folder tree (a folder a class) or npz of the suspicious train set; None = the data set's own.
        test_attack: folder tree or npz of triggered test images under their TRUE classes; needs `target`.
        poisoned_rows: npz (`rows` or `index`, or a run's plan.npz) or text file (a row number a line) of the rows
            known to be poisoned; they count in `train`, or in the data set's own. Only the evaluator reads it.
        model: a checkpoint (safetensors, or plain tensors saved by torch) to defend instead of training one.
        isolated: npz (`index`, optionally `score`, `images`, `labels`) of an earlier isolation. With images it
            is the train set by itself, so that unlearning needs no other data (ABL's "quick unlearning").
        run: folder of a finished run; the command line replaces this attack by `FinishedRun` then.
        trigger, label_map, target: known trigger and goal, to measure ASR on the data set's test images.
    """

    def __init__(
        self,
        *,
        name: str = "external",
        train: str | None = None,
        test_attack: str | None = None,
        poisoned_rows: str | None = None,
        model: str | None = None,
        isolated: str | None = None,
        run: str | None = None,
        trigger: Trigger | None = None,
        label_map: LabelMap | None = None,
        target: int | None = None,
    ) -> None:
        if run is not None:
            raise UserError(f"attack.run={run}: is resolved by the command line; use backdoor.attacks.FinishedRun here")
        self.name, self.target, self.ratio = name, target, None
        self.paths = {
            "train": train,
            "test_attack": test_attack,
            "poisoned_rows": poisoned_rows,
            "model": model,
            "isolated": isolated,
        }
        for setting, value in self.paths.items():
            if value is not None and not Path(value).exists():
                raise UserError(f"attack.{setting}={value}: no such file or folder")
        if (trigger or test_attack) and target is None and label_map is None:
            raise UserError("attack.target: expected the target class, as attack.trigger or attack.test_attack is set")
        given = {"model": model, "suspect": isolated}
        self.stages: Mapping[str, Stage] = {}
        self.inputs = frozenset(name for name, path in given.items() if path is not None)
        self.trigger = trigger
        self.label_map = label_map or (AllToOne(target=target) if target is not None else None)

    def path(self, setting: str) -> Path | None:
        """The file or folder of a setting, if one is given."""
        value = self.paths[setting]
        return None if value is None else Path(value).expanduser()

    def check(self, num_classes: int | None, shape: Shape | None, labels: Tensor | None = None) -> None:
        """Raises UserError for a target class or a trigger that does not fit the data."""
        if self.label_map and num_classes is not None:
            self.label_map.check(num_classes)
        if self.trigger and shape is not None:
            self.trigger.check(shape)

    def prepare(self, data: DataSet, train: Split, test: Split, means: Means) -> Poisoned:
        """Read the user's files; class names and image size are those of `data`."""
        self.check(data.num_classes, data.shape)
        suspicious, suspect = self.read_train(data, train, means.cache_dir)
        attack = self.read_attack(data, test, means.cache_dir)
        truth = Truth(
            test_clean=test,
            attacks={"": attack} if attack else {},
            poisoned=self.known(suspicious, data),
            targets=targets_of([self.label_map]),
        )
        return Poisoned(suspicious, truth, checkpoint=self.path("model"), suspect=suspect)

    def read_train(self, data: DataSet, train: Split, cache_dir: Path) -> tuple[Split, Tensor | None]:
        """The suspicious split and the isolated rows bool (N,), if any."""
        path, isolated = self.path("train"), self.path("isolated")
        if path is not None:
            loaded = load_images(
                path, classes=data.classes, shape=data.shape, cache_dir=cache_dir, setting="attack.train"
            )
            train = loaded.open()
        if isolated is None:
            return train, None
        if path is None:
            with open_npz(isolated, "attack.isolated") as file:
                names = set(file.files)
            if not {"images", "labels"} <= names:
                raise UserError(
                    f"attack.isolated={isolated}: holds no images and labels, so attack.train must name the data "
                    "that its index counts in"
                )
            images = load_images(
                isolated, classes=data.classes, shape=data.shape, cache_dir=cache_dir, setting="attack.isolated"
            )
            split = images.open()
            return split, torch.ones(len(split), dtype=torch.bool)
        return train, npz_rows(isolated, train, "attack.isolated")

    def read_attack(self, data: DataSet, test: Split, cache_dir: Path) -> AttackSet | None:
        """The ASR set, from the user's files or from the known trigger."""
        path = self.path("test_attack")
        if path is None:
            known = PoisonOnly(name=self.name, label_map=self.label_map, trigger=self.trigger)
            return known.attack_set(test, data.num_classes)
        loaded = load_images(
            path, classes=data.classes, shape=data.shape, cache_dir=cache_dir, setting="attack.test_attack"
        ).open()
        assert self.label_map is not None  # refused in __init__
        attack = loaded.take(self.label_map.victims(loaded.labels, data.num_classes))
        if len(attack) == 0:
            raise UserError(f"attack.test_attack={path}: holds only images of the target class {self.target}")
        return AttackSet(attack, self.label_map.goal(data.num_classes))

    def known(self, suspicious: Split, data: DataSet) -> Tensor | None:
        """bool (N,) of the suspicious rows known to be poisoned; their numbers count as the user's own data do.

        Trusted rows have left `suspicious`, so a row is looked up by its `index`.
        """
        path = self.path("poisoned_rows")
        if path is None:
            return None
        if self.paths["train"] is None and self.paths["isolated"] is None:
            mask = named_rows(path, data.train.open(), "attack.poisoned_rows", data.train.digest)
        else:
            mask = named_rows(path, suspicious, "attack.poisoned_rows")
        return mask[suspicious.index]
