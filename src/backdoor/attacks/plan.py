"""What is poisoned: groups of rows, drawn once, seeded, and saved with the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backdoor.attacks.label_maps import LabelMap
from backdoor.checking.ranges import Share
from backdoor.errors import UserError, suggest
from backdoor.store.npz import PLAN_BYTES, Npz, open_npz, save_npz
from backdoor.triggers.base import Trigger

RATIO_BASES = ("train", "class", "eligible")
MOST_ROWS = 10**9  # of a train split
DAMAGED = "it is damaged, or was not written by a run"
POOLS = ("all", "non_target", "target", "victims")


@dataclass(frozen=True)
class PoisonGroup:
    """Rows that get one trigger and one label map.

    Attributes:
        ratio: share in [0, 1] of the base `ratio_of`.
        ratio_of: `train` (all N rows, as BackdoorBench and ABL count), `class` (the target class's rows)
            or `eligible` (the pool).
        eligible: the pool that rows are drawn from: `all` (ABL, BackdoorBench; the target class included),
            `non_target` (D-BR), `target` (clean-label attacks), `victims` (the classes that the label map
            changes). Of these, only rows that the label map itself allows: the target class of a clean-label map,
            the source classes of a source-specific one.
        trigger: the trigger, or None for rows that only change their label.
        label_map: gives the poisoned label.
        cover: these rows carry a trigger and their true label, to teach when NOT to react; they are in the plan, but
            a defense that flags one has not found poison.
    """

    ratio: Share
    label_map: LabelMap
    trigger: Trigger | None = None
    ratio_of: str = "train"
    eligible: str = "all"
    cover: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or not 0 <= self.ratio <= 1:
            raise UserError(f"attack.ratio={self.ratio}: expected a share from 0 to 1, for instance 0.1")
        for name, value, choices in (
            ("ratio_of", self.ratio_of, RATIO_BASES),
            ("eligible", self.eligible, POOLS),
        ):
            if value not in choices:
                raise UserError(f"attack.{name}={value}: {suggest(str(value), choices)}")
        if self.trigger is not None and self.trigger.clean_label and not self.label_map.clean_label:
            raise UserError(
                f"attack.label_map: {type(self.trigger).__name__} is made to hide an image's own class, which helps "
                f"the attack only where that label stays; {type(self.label_map).__name__} changes it; "
                "use label_map=clean_label"
            )
        needs_target = self.eligible in ("target", "non_target") or self.ratio_of == "class"
        if needs_target and self.label_map.target is None:
            raise UserError(
                f"attack.eligible={self.eligible} with attack.ratio_of={self.ratio_of}: the label map "
                f"{type(self.label_map).__name__} has no single target class; "
                "use attack.eligible=all attack.ratio_of=train"
                + ("; a clean-label attack becomes a dirty-label one by that" if self.eligible == "target" else "")
            )

    def check(self, num_classes: int) -> None:
        """Raises UserError for a label map that does not fit K classes or leaves the pool empty."""
        self.label_map.check(num_classes)
        classes = torch.arange(num_classes)
        if not self.pool(classes, num_classes).any():
            allowed = classes[self.label_map.eligible(classes, num_classes)].tolist()
            raise UserError(
                f"attack.eligible={self.eligible}: the label map {type(self.label_map).__name__} poisons only rows of "
                f"class {', '.join(map(str, allowed))}, none of which is in that pool (target class "
                f"{self.label_map.target}); use attack.eligible=all, or another label_map"
            )

    def pool(self, labels: Tensor, num_classes: int) -> Tensor:
        """bool (N,): the rows that may be drawn."""
        allowed = self.label_map.eligible(labels, num_classes)
        target = -1 if self.label_map.target is None else self.label_map.target
        if self.eligible == "target":
            return allowed & labels.eq(target)
        if self.eligible == "non_target":
            return allowed & labels.ne(target)
        if self.eligible == "victims":
            return allowed & self.label_map.victims(labels, num_classes)
        return allowed

    def draw(self, labels: Tensor, num_classes: int, free: Tensor, generator: torch.Generator) -> Tensor:
        """int64 (n,), ascending: a uniform draw without replacement from the pool's rows that are `free` (bool (N,)).

        Raises:
            UserError: the ratio asks for more rows than there are; the message says the largest that fits.
        """
        rows = (self.pool(labels, num_classes) & free).nonzero().flatten()
        bases = {"train": len(labels), "eligible": len(rows), "class": 0}
        if self.ratio_of == "class":
            bases["class"] = int(labels.eq(int(self.label_map.target or 0)).sum())
        base = bases[self.ratio_of]
        count = math.floor(self.ratio * base + 0.5)
        if count > len(rows):
            largest = math.floor(len(rows) / base * 10_000) / 10_000
            raise UserError(
                f"attack.ratio={self.ratio} of {self.ratio_of}: asks for {count} poisoned rows, but only {len(rows)} "
                f"are eligible; the largest ratio is {largest:g}"
            )
        if count == 0 and not self.cover:
            raise UserError(
                f"attack.ratio={self.ratio} of {self.ratio_of}: gives no poisoned row of {base}; expected at least "
                "one; attack=none is the word for no poison"
            )
        chosen = rows[torch.randperm(len(rows), generator=generator)[:count]]
        return chosen.sort().values


@dataclass(frozen=True)
class PoisonPlan:
    """The rows that an attack changes.

    Attributes:
        rows: int64 (P,), positions in the train split, ascending inside a role.
        labels: int64 (P,), the labels that these rows carry after poisoning.
        role: int64 (P,), position in `roles`.
        roles: the groups' names.
        total: N, rows of the train split.
        covers: those of `roles` whose rows are no poison; see `PoisonGroup`.
    """

    rows: Tensor
    labels: Tensor
    role: Tensor
    roles: tuple[str, ...]
    total: int
    covers: tuple[str, ...] = ()

    @staticmethod
    def none(total: int) -> PoisonPlan:
        """A plan that changes nothing."""
        empty = torch.empty(0, dtype=torch.int64)
        return PoisonPlan(empty, empty, empty, (), total)

    def mask(self, without: Sequence[str] = ()) -> Tensor:
        """bool (N,): True where a row is changed by a role that is not in `without`."""
        left_out = torch.tensor([role in without for role in self.roles], dtype=torch.bool)
        mask = torch.zeros(self.total, dtype=torch.bool)
        mask[self.rows[~left_out[self.role]]] = True
        return mask

    def save(self, path: Path, digests: Sequence[str] = ()) -> None:
        """Write an npz (no pickle): the fields, and the digests of the clean images, train and test."""
        save_npz(
            path,
            rows=self.rows.numpy(),
            labels=self.labels.numpy(),
            role=self.role.numpy(),
            roles=np.array(self.roles, dtype=np.str_),
            total=np.array(self.total),
            covers=np.array(self.covers, dtype=np.str_),
            digests=np.array(digests, dtype=np.str_),
        )

    @staticmethod
    def digests(path: Path, setting: str = "plan") -> tuple[str, ...]:
        """What `save` was given; empty for a file from before it was."""
        with open_npz(path, setting, limit=PLAN_BYTES, hint=DAMAGED) as file:
            return names_in(file, "digests") if "digests" in file.files else ()

    @staticmethod
    def load(path: Path, setting: str = "plan", num_classes: int | None = None) -> PoisonPlan:
        """Read what `save` wrote; the file is not trusted.

        Args:
            num_classes: K; the labels must be below it.

        Raises:
            UserError: a file that cannot be read, or that is no plan.
        """
        with open_npz(path, setting, limit=PLAN_BYTES, hint=DAMAGED) as file:
            rows, labels, role, total = (file[name] for name in ("rows", "labels", "role", "total"))
            roles = names_in(file, "roles")
            covers = names_in(file, "covers") if "covers" in file.files else ()
        wrong = fault_of(rows, labels, role, total, len(roles), num_classes)
        if wrong:
            raise UserError(f"{setting}={path}: {wrong}; {DAMAGED}")
        tensors = [torch.from_numpy(array) for array in (rows, labels, role)]
        return PoisonPlan(tensors[0], tensors[1], tensors[2], roles, int(total), covers)


def names_in(file: Npz, name: str) -> tuple[str, ...]:
    """The words of an array."""
    words = file[name]
    if words.ndim != 1 or words.dtype.kind != "U" or not all(str(word).isprintable() for word in words):
        raise UserError(f"{file.where}: {name}: expected words, got {words.dtype} {words.shape}; {DAMAGED}")
    return tuple(str(word) for word in words)


def fault_of(
    rows: np.ndarray, labels: np.ndarray, role: np.ndarray, total: np.ndarray, roles: int, num_classes: int | None
) -> str:
    """What makes these arrays no plan; empty if nothing does."""
    for name, array in {"rows": rows, "labels": labels, "role": role, "total": total}.items():
        if array.dtype != np.int64 or array.ndim != (name != "total"):
            return f"{name}: expected int64 {'()' if name == 'total' else '(P,)'}, got {array.dtype} {array.shape}"
    if not len(rows) == len(labels) == len(role):
        return f"expected as many rows as labels and roles, got {len(rows)}, {len(labels)} and {len(role)}"
    if not 0 <= total <= MOST_ROWS:
        return f"total: expected from 0 to {MOST_ROWS} rows, got {total}"
    most = num_classes or np.iinfo(np.int64).max
    for name, array, above in (("rows", rows, total), ("labels", labels, most), ("role", role, roles)):
        if len(array) and not 0 <= array.min() <= array.max() < above:
            return f"{name} out of range or negative: expected 0 to {above - 1}, got {array.min()} to {array.max()}"
    return "" if len(np.unique(rows)) == len(rows) else "rows: a row is named twice"
