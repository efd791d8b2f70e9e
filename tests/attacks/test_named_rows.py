"""Files that name rows of a user's own data: they count in its own order, and what contradicts the data is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from backdoor.attacks import AllToOne, PoisonGroup, PoisonOnly
from backdoor.attacks.rows import named_rows, npz_rows
from backdoor.errors import UserError
from backdoor.state import Split
from backdoor.store.npz import save_npz
from helpers.archives import GOOD, data
from helpers.finished import prepared

SETTING = "attack.poisoned_rows"


def rows_in(path: Path, whole: Split | None = None, digest: str | None = None) -> list[int]:
    return named_rows(path, whole or data(), SETTING, digest).nonzero().flatten().tolist()


def refused(path: Path, whole: Split | None = None, digest: str | None = None) -> str:
    """The one line, without the file that it begins with."""
    with pytest.raises(UserError) as caught:
        rows_in(path, whole, digest)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{SETTING}={path}: ")
    return line.removeprefix(f"{SETTING}={path}: ")


def test_rows_that_a_file_names(tmp_path):
    (tmp_path / "rows.txt").write_text("3\n5\n")
    assert rows_in(tmp_path / "rows.txt") == [3, 5]
    np.savez(tmp_path / "rows.npz", index=np.array([8, 0], dtype=np.uint16), total=np.array(9))
    assert rows_in(tmp_path / "rows.npz") == [0, 8]


ROWS = {
    "above": ({"rows": np.array([1, 9])}, "expected rows from 0 to 8, got 1 to 9"),
    "below": ({"rows": np.array([-1, 3])}, "expected rows from 0 to 8, got -1 to 3"),
    "no integers": ({"rows": np.array([1.0])}, "expected one-dimensional integers named `rows` or `index`"),
    "two dimensions": ({"index": np.array([[1]])}, "expected one-dimensional integers"),
    "none": ({"images": np.array([1])}, "expected one-dimensional integers"),
    "total": ({"rows": np.array([1]), "total": np.array(700)}, "counts in 700 train rows, but these data have 9"),
    "totals": ({"rows": np.array([1]), "total": np.array([9, 9])}, "total: expected an integer"),
    "objects": ({"rows": np.array([{"a": 1}], dtype=object)}, "expected an npz of plain arrays"),
}


@pytest.mark.parametrize("fault", ROWS)
def test_rows_that_cannot_be_are_refused(tmp_path, fault):
    arrays, said = ROWS[fault]
    np.savez(tmp_path / "rows.npz", **arrays)
    assert refused(tmp_path / "rows.npz").startswith(said)


@pytest.mark.parametrize("text", ["first\n", "1" * 30, "1" * 5000, "\xff", "1.5"])
def test_a_text_file_that_holds_no_rows_is_refused(tmp_path, text):
    (tmp_path / "rows.txt").write_text(text, encoding="latin1")
    assert refused(tmp_path / "rows.txt").startswith("expected a row number a line")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    for name in ("pipe.txt", "pipe.npz"):
        os.mkfifo(tmp_path / name)
        assert "no regular file" in refused(tmp_path / name)
    assert "no regular file" in refused(tmp_path)


def test_a_runs_plan_must_be_that_of_these_data(tmp_path):
    path = tmp_path / "plan.npz"
    save_npz(path, **GOOD)
    assert rows_in(path) == [1, 4]  # 5 and 7 are covers
    assert rows_in(path, digest="c" * 64) == [1, 4]
    others = data([5, 0, 5, 5, 9, 3, 5, 2, 5])
    assert refused(path, others).startswith("1 of its 4 rows, the first 4, have other labels in these data")
    assert refused(path, digest="a" * 64).startswith("these data are the clean images that this plan would poison")
    save_npz(path, **GOOD | {"total": np.array(8)})
    assert refused(path).startswith("counts in 8 train rows, but these data have 9")


def test_a_plan_from_before_covers_were_told_says_so(tmp_path, caplog):
    save_npz(tmp_path / "plan.npz", **GOOD)
    assert rows_in(tmp_path / "plan.npz") == [1, 4]
    assert not caplog.records
    save_npz(tmp_path / "plan.npz", **{name: array for name, array in GOOD.items() if name != "covers"})
    assert rows_in(tmp_path / "plan.npz") == [1, 4, 5, 7]
    assert "an older plan, which does not tell its covers; their rows, if any, count as poison" in caplog.text


def test_a_runs_isolation_must_show_the_rows_of_these_data(tmp_path):
    path, whole = tmp_path / "isolate.npz", data()

    def saved(rows: list[int], **change: np.ndarray) -> Path:
        kept = whole.take(torch.tensor(rows))
        arrays = {"index": np.array(rows), "images": kept.images.numpy(), "labels": kept.labels.numpy()}
        save_npz(path, **arrays | change)
        return path

    assert npz_rows(saved([2, 6]), whole, SETTING).nonzero().flatten().tolist() == [2, 6]
    larger = np.zeros((2, 1, 4, 4), dtype=np.uint8)  # the same rows, isolated at another image size
    assert npz_rows(saved([2, 6], images=larger), whole, SETTING).sum() == 2
    for change in ({"index": np.array([3, 7])}, {"index": np.array([2, 0])}, {"labels": np.array([5])}):
        assert refused(saved([2, 6], **change)).startswith("its images or labels are not those that its index has")


def test_a_plan_counts_in_the_users_own_order_whatever_was_set_aside(tmp_path):
    """Somebody's poisoned digits as own data and as attack.train; the clean ones and another order are refused."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (60,), generator=generator)
    images = torch.randint(256, (60, 1, 16, 16), generator=generator, dtype=torch.uint8)
    attack = PoisonOnly(name="it", groups={"poison": PoisonGroup(0.2, AllToOne(target=0))})
    plan = attack.plan(labels, 10, seed=0)
    clean = Split.of(images, labels)
    poisoned = attack.poison(clean, plan)
    for name, split in {
        "clean": clean,
        "poisoned": poisoned,
        "turned": poisoned.take(torch.arange(60).flip(0)),
    }.items():
        np.savez(tmp_path / f"{name}.npz", images=split.images.numpy(), labels=split.labels.numpy())
    plan.save(tmp_path / "plan.npz")
    arrays = ("data=arrays", "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]", f"data.test={tmp_path}/clean.npz")
    words = ("trainer=debug", "attack=external", f"{SETTING}={tmp_path / 'plan.npz'}", "defense=none", *arrays)

    def found(*more: str) -> torch.Tensor:
        made, _ = prepared(tmp_path / "cache", tmp_path / "run", *words, *more)
        return made.train.index[made.truth.poisoned]

    assert found(f"data.train={tmp_path}/poisoned.npz", "reserved=0").tolist() == plan.rows.tolist()
    some = found(f"data.train={tmp_path}/poisoned.npz", "reserved=0.5").tolist()
    assert 0 < len(some) < 12
    assert set(some) < set(plan.rows.tolist())
    given = f"data.train={tmp_path}/clean.npz"
    assert found(given, f"attack.train={tmp_path}/poisoned.npz", "reserved=0.5").tolist() == plan.rows.tolist()
    for more in ((given,), (given, f"attack.train={tmp_path}/turned.npz")):
        with pytest.raises(UserError, match="have other labels in these data than it gives them"):
            found(*more)
