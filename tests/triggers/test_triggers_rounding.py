"""Rounding and overflow, triggers one after another, and their versions at test time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backdoor.errors import UserError
from backdoor.triggers import BlendImage, BlendNoise, Patch, Sequence, Sinusoid, Watermark
from helpers.trigger import WRAPPED, photos, plain, white_file


def test_rounding_half_up_and_truncation(tmp_path: Path) -> None:
    path = white_file(tmp_path)
    for alpha, rounded, truncated in ((0.2, 153, 153), (0.1, 141, 140)):  # exact: 153.4 and 140.7
        assert BlendImage(path, alpha=alpha)(plain(128)).unique().tolist() == [rounded]
        assert BlendImage(path, alpha=alpha, rounding="trunc")(plain(128)).unique().tolist() == [truncated]
    half = Patch([[1]], alpha=0.5)  # 0.5 on black
    assert half(plain(0)).max() == 1
    assert half(plain(2)).min() == 2  # 1.5 is rounded up


def test_every_level_survives_float_truncation_when_nothing_changes() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    still = Sinusoid(delta=0, rounding="trunc", quantize=True)
    assert torch.equal((still(levels / 255) * 255).round().to(torch.uint8), levels)


@pytest.mark.parametrize("setting", ["rounding", "overflow"])
def test_unknown_rounding_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match=rf"attack\.trigger\.{setting}: .*'up'.*Choices"):
        Patch(**{setting: "up"})


def test_wrong_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="images: expected"):
        Patch()(torch.zeros(1, 1, 3, 32, 32))
    with pytest.raises(ValueError, match="images: expected"):
        Patch()(torch.zeros(1, 3, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="index: expected"):
        Patch()(torch.zeros(2, 3, 32, 32), torch.arange(3))


def test_sequence_order_matters_where_masks_overlap() -> None:
    wave, grid = Sinusoid(delta=40), Patch()
    first, second = Sequence([wave, grid])(plain(128)), Sequence([grid, wave])(plain(128))
    assert first[0, 0, 29:, 29:].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert torch.equal(first[..., :29, :], second[..., :29, :])
    assert not torch.equal(first, second)


def test_sequence_clamps_and_rounds_once() -> None:
    up, down = Sinusoid(delta=200), Sinusoid(delta=200, frequency=6)
    down.delta = -200  # the opposite wave: together they are the identity, unless one is clamped alone
    images = photos()
    assert torch.equal(Sequence([up, down])(images), images)
    assert not torch.equal(down(up(images)), images)
    quarters = Sequence([Patch([[1]], alpha=0.25), Sinusoid(delta=0)])
    added = Sequence({"a": Watermark([[0.4]]), "b": Watermark([[0.4]])})
    assert quarters(plain(0)).max() == 0
    assert added(plain(0)).max() == 1  # 0.8; rounding each would give 0


def test_sequence_refuses_settings_it_would_ignore() -> None:
    with pytest.raises(UserError, match=r"overflow='clip'.*'wrap' in Watermark"):
        Sequence([Patch(), Watermark(overflow="wrap")])
    wrapping = Sequence([Patch(), Watermark(overflow="wrap", rounding="trunc")], overflow="wrap", rounding="trunc")
    assert wrapping(plain(128))[0, :, 25:28, 25:28].tolist() == WRAPPED
    with pytest.raises(UserError, match="at least one trigger"):
        Sequence([])


def test_test_time_versions() -> None:
    images = photos()
    assert torch.equal(Sinusoid(delta=40, test_delta=60).at_test()(images), Sinusoid(delta=60)(images))
    trigger = BlendNoise(seed=4, alpha=0.1, test_alpha=0.3)
    before = trigger(images)
    assert torch.equal(trigger.at_test()(images), BlendNoise(seed=4, alpha=0.3)(images))
    assert torch.equal(trigger.at_test().at_test()(images), trigger.at_test()(images))
    assert torch.equal(trigger(images), before)
    both = Sequence([Sinusoid(delta=40, test_delta=60), Patch()], rounding="trunc")
    both(images)
    wanted = Sequence([Sinusoid(delta=60), Patch()], rounding="trunc")
    assert torch.equal(both.at_test()(images), wanted(images))
    assert Patch().at_test()(images).equal(Patch()(images))
