from __future__ import annotations

from typing import Any

import pytest
import torch

from backdoor.data.reserve import Limit, split_reserved, stratified
from backdoor.errors import UserError
from backdoor.state import Split


def split_of(labels: torch.Tensor) -> Split:
    return Split.of(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELS = torch.randint(0, 7, (1000,), generator=generator(3)) ** 2  # unequal gaps: classes 2, 3, 5 ... are empty


@pytest.mark.parametrize("count", [0, 1, 5, 100, 333, 999, 1000])
def test_each_class_keeps_its_share_to_within_one_row(count: int) -> None:
    rows = stratified(LABELS, count, generator())
    assert len(rows.unique()) == len(rows) == count
    exact = torch.bincount(LABELS) * count / 1000
    drawn = torch.bincount(LABELS[rows], minlength=len(exact))
    assert bool(((drawn - exact).abs() < 1).all())
    assert torch.equal(rows, rows.sort().values)


def test_seeded_and_not_always_the_first_rows() -> None:
    first, again, other = (stratified(LABELS, 100, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert int(first[-1]) > 900


@pytest.mark.parametrize(("reserved", "count"), [(0, 0), (0.0, 0), (50, 50), (0.05, 50), (0.0014, 1), (999, 999)])
def test_reserved_rows_and_kept_rows_are_all_rows(reserved: int | float, count: int) -> None:
    kept, chosen = split_reserved(split_of(LABELS), reserved, seed=4)
    assert len(chosen) == count
    assert torch.equal(torch.cat([kept, chosen]).sort().values, torch.arange(1000))


@pytest.mark.parametrize("reserved", [-1, 1000, 2000, -0.1, 1.0, 1.5, 1e-9, 0.9999, float("nan"), True, None, "5%"])
def test_bad_reserved_names_the_setting(reserved: Any) -> None:
    with pytest.raises(UserError, match=r"^reserved: expected a number of rows \(0 to 999\) or a share"):
        split_reserved(split_of(LABELS), reserved, seed=0)


def test_limit_is_an_upper_bound() -> None:
    assert torch.equal(Limit(None).rows(LABELS), torch.arange(1000))
    assert torch.equal(Limit(5000).rows(LABELS), torch.arange(1000))
    assert len(Limit(70, seed=1).rows(LABELS)) == 70
