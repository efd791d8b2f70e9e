"""Neural Cleanse: its formulas by hand, the batched search against one class at a time, settings that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from backdoor.defenses.nc import (
    Costs,
    Invert,
    Reversed,
    Search,
    adjust,
    anomaly_indices,
    outliers,
    reverse_triggers,
    stamp,
)
from backdoor.errors import UserError
from helpers.surrogate import NearestMean, digits, tiny_cnn


def test_stamp_by_hand():
    image, pattern = torch.full((1, 2, 1, 2), 0.5), torch.ones(1, 2, 1, 2)
    found = stamp(image, torch.tensor([[[[0.0, 0.5]]]]), pattern)
    assert found.flatten().tolist() == [0.5, 0.75, 0.5, 0.75]  # the mask is one for all channels


def test_costs_rise_after_good_epochs_and_fall_after_bad_ones():
    zero = torch.zeros(3, dtype=torch.int64)
    costs = Costs(torch.tensor([1.0, 1.0, 0.0]), zero, zero)
    seen = []
    for epoch in range(6):
        success = torch.tensor([True, False, epoch != 0])
        costs = adjust(costs, success, first=0.25, patience=2, multiplier=4.0)
        seen.append(costs.weight.tolist())
    assert [row[0] for row in seen] == [1, 4, 4, 16, 16, 64]
    assert [row[1] for row in seen] == [1, 1 / 8, 1 / 8, 1 / 64, 1 / 64, 1 / 512]
    assert [row[2] for row in seen] == [0, 0, 0.25, 0.25, 1, 1]  # one bad epoch, then twice two good ones


def test_a_broken_row_of_good_epochs_counts_from_the_start():
    zero = torch.zeros(1, dtype=torch.int64)
    costs = Costs(torch.ones(1), zero, zero)
    for success in (True, True, False, True, True):
        costs = adjust(costs, torch.tensor([success]), first=1.0, patience=3, multiplier=2.0)
    assert (costs.weight.item(), costs.good.item(), costs.bad.item()) == (1.0, 2, 0)


def test_anomaly_indices_by_hand():
    norms = torch.tensor([10.0, 52.0, 50.0, 48.0, 90.0, 54.0])
    # median 51; deviations 41, 1, 1, 3, 39, 3, whose median is 3
    expected = [value / (3 * 1.4826) for value in (41, 1, 1, 3, 39, 3)]
    assert anomaly_indices(norms).tolist() == pytest.approx(expected)
    assert outliers(norms, threshold=2.0) == [0]  # 90 is as odd, and no small trigger
    assert outliers(norms, threshold=10.0) == []


@pytest.mark.parametrize(
    ("norms", "indices", "flagged"),
    [
        ([7.0], [0.0], []),
        ([7.0] * 10, [0.0] * 10, []),  # 0 / 0 without a floor
        ([10.0, 400.0], [195 / 195 / 1.4826] * 2, []),  # two are equally far from their median
        ([30.0, 1024.0, 1024.0, 1024.0], [994.0, 0.0, 0.0, 0.0], [0]),  # MAD 0: in pixels
        ([5.0, 5.2, 5.4, 4.5], [0.1, 0.1, 0.3, 0.6], []),  # parts of a pixel are alike
    ],
)
def test_a_mad_of_nothing_is_a_pixel(norms, indices, flagged):
    assert anomaly_indices(torch.tensor(norms)).tolist() == pytest.approx(indices, abs=1e-5)
    assert outliers(torch.tensor(norms), threshold=2.0) == flagged


@pytest.mark.parametrize("norms", [torch.ones(0), torch.ones(2, 2), torch.tensor([1.0, float("nan")])])
def test_norms_that_are_none_are_refused(norms):
    with pytest.raises(ValueError, match=r"expected \(K,\) finite"):
        anomaly_indices(norms)


def test_classes_together_are_each_class_alone():
    """Whatever goes through the model at once, and whenever the other classes stop."""
    model, images = tiny_cnn().requires_grad_(False), digits(24).train.images
    search = Search(epochs=8, batch_size=10, at_once=30, stop_patience=2, success=0.5, cost=1e-2, patience=1)
    together = reverse_triggers(model, images, torch.arange(10), search, seed=0)
    assert len(set(together.epochs.tolist())) > 1
    for label in (0, 4, 9):
        alone = reverse_triggers(model, images, torch.tensor([label]), search, seed=0)
        for name, found, whole in zip(Reversed._fields, alone, together, strict=True):
            torch.testing.assert_close(found[0], whole[label], atol=1e-4, rtol=1e-4, msg=name)


def test_the_first_step_is_adams_on_the_papers_loss():
    """One class, one batch, by autograd and torch's own Adam."""
    model, images = NearestMean(digits(300)).requires_grad_(False), digits(12).train.images
    search = Search(epochs=1, batch_size=12, cost=0.3)
    start = reverse_triggers(model, images, torch.tensor([2]), replace(search, lr=1e-12), seed=5)
    mask, pattern = (torch.atanh((part * 2 - 1).double()).requires_grad_() for part in start[:2])
    adam = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
    shown, painted = mask.tanh() / 2 + 0.5, pattern.tanh() / 2 + 0.5
    stamped = (1 - shown) * images.double() / 255 + shown * painted
    loss = F.cross_entropy(model.double()(stamped), torch.full((12,), 2)) + 0.3 * shown.sum()
    loss.backward()
    adam.step()
    found = reverse_triggers(model.float(), images, torch.tensor([2]), search, seed=5)
    torch.testing.assert_close(found.masks, (mask.tanh() / 2 + 0.5).float(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.patterns, (pattern.tanh() / 2 + 0.5).float(), atol=1e-3, rtol=1e-3)


def test_a_class_that_cannot_be_reached_has_a_whole_masks_norm():
    def never_one(images):
        return torch.stack([images.mean((1, 2, 3)), images.mean((1, 2, 3)) - 1], 1)

    found = reverse_triggers(never_one, digits(10).train.images, torch.tensor([0, 1]), Search(epochs=3), seed=0)
    assert found.success.tolist() == [1.0, 0.0]
    assert found.norms[1] == 16 * 16 > found.norms[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1.5},
        {"at_once": 0},
        {"patience": 0},
        {"lr": 0},
        {"betas": [0.5]},
        {"betas": [0.5, 1.0]},
        {"cost": "big"},
        {"multiplier": 1.0},
        {"success": 1.1},
        {"improvement": 0},
        {"threshold": 0},
        {"floor": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=rf"{next(iter(wrong))}=.*: expected"):
        Invert(**wrong)
