"""Rows of a train set that a user's file names: checked against the data that they count in."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backdoor.attacks.plan import PoisonPlan
from backdoor.errors import UserError
from backdoor.state import Split
from backdoor.store.npz import PLAN_BYTES, Npz, open_npz

log = logging.getLogger(__name__)

ORDER = "expected rows of exactly these data, in their own order"
FORM = "give an npz with `rows` or `index`, or a text file with a row number a line"


def named_rows(path: Path, whole: Split, setting: str, digest: str | None = None) -> Tensor:
    """bool (N,): the rows that a text file (a row number a line) or an npz names; see `npz_rows`."""
    if path.suffix == ".npz":
        return npz_rows(path, whole, setting, digest)
    return marked(read_lines(path, setting), len(whole), f"{setting}={path}")


def npz_rows(path: Path, whole: Split, setting: str, digest: str | None = None) -> Tensor:
    """bool (N,): the rows of `whole` that an npz names.

    Args:
        path: an npz with `rows` or `index`, a run's isolation, or a run's plan, whose poison is meant, without covers.
            What the latter two say of their rows must hold.
        whole: N rows in the order that the file counts in.
        digest: of `whole`, where it is known.

    Raises:
        UserError: a file that cannot be read, or is about other data.
    """
    with open_npz(path, setting, limit=PLAN_BYTES, hint=FORM) as file:
        if "role" in file.files:
            return planned_rows(path, whole, setting, digest)
        rows = rows_of(file)
        check_total(file, len(whole))
        mask = marked(rows, len(whole), file.where)
        check_isolation(path, setting, file, rows, whole)
        return mask


def read_lines(path: Path, setting: str) -> np.ndarray:
    """int64 (P,) from a text file."""
    try:
        if not path.is_file() or path.stat().st_size > PLAN_BYTES:
            raise ValueError(f"no regular file of at most {PLAN_BYTES:,} bytes")
        return np.array([int(line) for line in path.read_text().split()], dtype=np.int64)
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(f"{setting}={path}: expected a row number a line ({error})") from None


def rows_of(file: Npz) -> np.ndarray:
    """Integers (P,): the array `rows` or `index`."""
    name = "rows" if "rows" in file.files else "index"
    rows = file[name] if name in file.files else None
    if rows is None or rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise UserError(f"{file.where}: expected one-dimensional integers named `rows` or `index`; {FORM}")
    return rows


def check_total(file: Npz, count: int) -> None:
    """Raises UserError if the file says that it counts in another number of rows."""
    if "total" not in file.files:
        return
    total = file["total"]
    if total.ndim != 0 or total.dtype.kind not in "iu":
        raise UserError(f"{file.where}: total: expected an integer, got {total.dtype} {total.shape}; {FORM}")
    if int(total) != count:
        raise UserError(f"{file.where}: counts in {int(total)} train rows, but these data have {count}; {ORDER}")


def marked(rows: np.ndarray, count: int, where: str) -> Tensor:
    """bool (count,) with the given rows set."""
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise UserError(f"{where}: expected rows from 0 to {count - 1}, got {rows.min()} to {rows.max()}")
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.from_numpy(rows.astype(np.int64))] = True
    return mask


def check_isolation(path: Path, setting: str, file: Npz, rows: np.ndarray, whole: Split) -> None:
    """Raises UserError if a run's isolation (`index`, `images`, `labels`) shows other rows than these data have."""
    if "rows" in file.files or not {"index", "images", "labels"} <= set(file.files):
        return
    labels, at = file["labels"], torch.from_numpy(rows.astype(np.int64))
    same = np.array_equal(labels, whole.labels[at].numpy())
    if same:
        with open_npz(path, setting) as large:
            images = large["images"]
        # The same rows in another size are no contradiction.
        same = images.shape[1:] != whole.images.shape[1:] or np.array_equal(images, whole.images[at].numpy())
    if not same:
        raise UserError(f"{file.where}: its images or labels are not those that its index has in these data; {ORDER}")


def planned_rows(path: Path, whole: Split, setting: str, digest: str | None) -> Tensor:
    """bool (N,): the poison of a run's plan; covers are left out, as in that run's own numbers.

    A plan holds the digests of the images BEFORE poisoning: if `digest` is one of them, nothing here is poisoned.
    """
    where = f"{setting}={path}"
    plan = PoisonPlan.load(path, setting)
    with open_npz(path, setting, limit=PLAN_BYTES, hint=FORM) as file:
        check_total(file, len(whole))
        told = "covers" in file.files
    if digest is not None and digest in PoisonPlan.digests(path, setting) and len(plan.rows):
        raise UserError(
            f"{where}: these data are the clean images that this plan would poison; set attack.train to the poisoned "
            "images, or give attack.run= that run's folder alone"
        )
    wrong = plan.rows[whole.labels[plan.rows] != plan.labels]
    if len(wrong):
        raise UserError(
            f"{where}: {len(wrong)} of its {len(plan.rows)} rows, the first {int(wrong[0])}, have other labels in "
            f"these data than it gives them; {ORDER}"
        )
    if not told and len(plan.roles) > 1:
        log.warning("%s: an older plan, which does not tell its covers; their rows, if any, count as poison", where)
    return plan.mask(without=plan.covers)
