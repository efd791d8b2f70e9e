"""Sinusoid, stripes and watermark: reference values, computed independently, and bad settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backdoor.errors import UserError
from backdoor.triggers import Sinusoid, Strip, Watermark
from helpers.trigger import SIZES, WRAPPED, changed, plain, sums

# (settings, level of the image) -> columns 0-7 and, where known, 8-15. With trunc, columns at a zero
# crossing may lie one lower in another precision; 0 and 8 are exact.
WAVES: list[tuple[dict[str, Any], int, list[int]]] = [
    ({"delta": 20, "rounding": "trunc"}, 128,
     [128, 146, 142, 120, 108, 120, 142, 146, 128, 109, 113, 135, 148, 135, 113, 109]),
    ({"delta": 20}, 128, [128, 146, 142, 120, 108, 120, 142, 146, 128, 110, 114, 136, 148, 136, 114, 110]),
    ({"delta": 40, "rounding": "trunc"}, 128,
     [128, 164, 156, 112, 88, 112, 156, 164, 128, 91, 99, 143, 168, 143, 99, 91]),
    ({"delta": 40}, 128, [128, 165, 156, 113, 88, 113, 156, 165, 128, 91, 100, 143, 168, 143, 100, 91]),
    ({"delta": 60, "rounding": "trunc"}, 128,
     [128, 183, 170, 105, 68, 105, 170, 183, 128, 72, 85, 150, 188, 150, 85, 72]),
    ({"delta": 60}, 128, [128, 183, 170, 105, 68, 105, 170, 183, 128, 73, 86, 151, 188, 151, 86, 73]),
    ({"delta": 20, "variant": "abl_readme", "rounding": "trunc"}, 128,
     [25, 40, 36, 19, 9, 19, 36, 40, 25, 10, 14, 31, 41, 31, 14, 10]),
    ({"delta": 20, "variant": "abl_readme"}, 128, [26, 40, 37, 19, 10, 19, 37, 40]),
    ({"delta": 20, "variant": "dbr_imagenet", "rounding": "trunc"}, 128,
     [102, 106, 105, 100, 98, 100, 105, 106, 102, 98, 99, 103, 106, 103, 99, 98]),
    ({"delta": 20, "variant": "abl_readme", "rounding": "trunc"}, 0, [0, 14, 11, 0, 0, 0, 11, 14]),
    ({"delta": 40, "rounding": "trunc"}, 0, [0, 36, 28, 0, 0, 0, 28, 36]),
    ({"delta": 20, "variant": "abl_readme"}, 255, [51, 66, 62, 45, 35, 45, 62, 66]),
    ({"delta": 20, "variant": "abl_readme", "rounding": "trunc"}, 255, [51, 65, 62, 44, 35, 44, 62, 65]),
    ({"delta": 40, "rounding": "trunc"}, 255, [255, 255, 255, 239, 215, 239, 255, 255]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "level", "columns"), WAVES)
def test_sinusoid_reference_values(settings: dict[str, Any], level: int, columns: list[int]) -> None:
    out = Sinusoid(**settings)(plain(level))
    assert out[0, 0, 0, : len(columns)].tolist() == columns
    assert (out == out[:, :1, :1]).all()  # alike for all rows and channels


def test_sinusoid_signal() -> None:
    wave = Sinusoid(delta=20)
    small = wave.signal((3, 32, 32))
    assert small[:8].tolist() == pytest.approx([0, 18.4776, 14.1421, -7.6537, -20, -7.6537, 14.1421, 18.4776], abs=1e-4)
    assert torch.allclose(small[8:16], -small[:8], atol=1e-5)
    assert torch.allclose(small[16:], small[:16], atol=1e-5)
    assert small.sum() == pytest.approx(0, abs=1e-4)
    assert wave.signal((3, 224, 224))[:8].tolist() == pytest.approx(
        [0, 3.3501, 6.6056, 9.6744, 12.4698, 14.9128, 16.9345, 18.4776], abs=1e-4
    )
    readme = Sinusoid(delta=20, variant="abl_readme")(torch.full((1, 3, 32, 32), 128 / 255)) * 255
    wanted = [25.6, 40.382, 36.914, 19.477, 9.6, 19.477, 36.914, 40.382]
    assert readme[0, 2, 5, :8].tolist() == pytest.approx(wanted, abs=1e-3)


STRIPES = [0, 14, 19, 13, 255, 241, 237, 244, 2, 15, 19, 11, 253, 240, 237, 246]
STRIPES += [4, 17, 19, 9, 251, 239, 238, 248, 6, 18, 18, 7, 249, 238, 238, 250]


@pytest.mark.parametrize(
    ("level", "columns"),
    [
        (128, [102, 105, 106, 105, 153, 150, 149, 151]),
        (0, [0, 2, 3, 2, 51, 48, 47, 48]),
        (255, [204, 206, 207, 206, 255, 252, 251, 252]),
    ],
)
def test_strip_reference_values(level: int, columns: list[int]) -> None:
    out = Strip(rounding="trunc")(plain(level))
    assert out[0, 0, 0, :8].tolist() == columns
    if level == 128:
        assert sums(out) == [130720] * 3


def test_strip_pattern_and_its_number_of_stripes() -> None:
    assert Strip(alpha=1)(plain(9))[0, 1, 4].tolist() == STRIPES
    for side in SIZES:
        assert Strip(alpha=1)(plain(9, side))[0, 0, 0, :: side // 32].tolist() == STRIPES


@pytest.mark.parametrize(
    ("setting", "value"), [("delta", -1), ("test_delta", -1), ("frequency", "fast"), ("variant", "abl")]
)
def test_bad_signal_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^attack\.trigger\.{setting}: "):
        Sinusoid(**{setting: value})


SATURATED = [
    [[255, 255, 157], [207, 255, 255], [255, 134, 255]],
    [[255, 255, 255], [136, 128, 241], [168, 255, 255]],
    [[255, 248, 255], [254, 160, 255], [132, 189, 255]],
]


@pytest.mark.parametrize(("overflow", "patch"), [("wrap", WRAPPED), ("clip", SATURATED)])
def test_trojan_reference_values(overflow: str, patch: list[list[list[int]]]) -> None:
    trigger = Watermark(overflow=overflow, rounding="trunc")
    out = trigger(plain(128))
    assert out[0, :, 25:28, 25:28].tolist() == patch
    outside = changed(plain(128), out)
    outside[25:28, 25:28] = False
    assert not outside.any()
    floats = trigger(plain(128) / 255)[0, :, 25:28, 25:28] * 255
    assert (floats - torch.tensor(patch)).abs().max() < 1
    assert trigger(plain(128, 224))[0, :, 178:196:7, 178:196:7].tolist() == patch


def test_seeded_watermark_differs_and_repeats() -> None:
    out = Watermark(seed=1)(plain(0))
    patch = out[0, :, 25:28, 25:28]
    assert patch.max() <= 250
    assert patch.float().std() > 20
    assert torch.equal(Watermark(seed=1)(plain(0)), out)
    assert not torch.equal(Watermark(seed=2)(plain(0)), out)
    with pytest.raises(UserError, match=r"^attack\.trigger\.seed: "):
        Watermark([[1]], seed=1)
