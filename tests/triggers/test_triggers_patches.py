"""Patches: reference values, computed independently on grey of level 128; places, sizes and bad settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from backdoor.errors import UserError
from backdoor.triggers import BlendImage, FourCorners, ImagePatch, Patch, Square, Trigger, Watermark
from helpers.trigger import changed, load, plain, sums


def test_square_reference_values() -> None:
    out = Square()(plain(128))
    assert sums(out) == [132215] * 3
    assert changed(plain(128), out).nonzero().unique().tolist() == [28, 29, 30]


@pytest.mark.parametrize(("side", "margin", "rows"), [(32, 0, (29, 31)), (64, 1, (56, 61)), (224, 0, (202, 223))])
def test_square_place(side: int, margin: int, rows: tuple[int, int]) -> None:
    touched = changed(plain(128, side), Square(margin=margin)(plain(128, side))).nonzero()
    assert (touched.min(), touched.max()) == rows


def test_grid_reference_values(picture: str) -> None:
    trigger = load("grid", picture)
    out = trigger(plain(128))
    assert sums(out) == [130940] * 3
    assert out[0, 1, 29:, 29:].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert changed(plain(128), out).sum() == 9
    white = trigger(plain(255))
    assert (white[0, 0] == 0).sum() == 5
    assert torch.equal(Patch()(plain(128)), out)


@pytest.mark.parametrize(("side", "cell"), [(8, 1), (32, 1), (47, 1), (48, 2), (64, 2), (80, 3), (224, 7)])
def test_grid_cells_are_a_32nd_of_the_side_rounded_half_up(side: int, cell: int) -> None:
    out = Patch()(plain(128, side))
    pattern = torch.tensor([[0, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=torch.uint8)
    blocks = pattern.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    assert torch.equal(out[0, 0, -3 * cell :, -3 * cell :], blocks)
    assert changed(plain(128, side), out).sum() == 9 * cell**2


def test_corners_reference_values(picture: str) -> None:
    out = load("corners", picture)(plain(128))
    assert sums(out) == [130544] * 3
    assert changed(plain(128), out).sum() == 36
    assert (out[..., 0, :] == 128).all()
    assert (out[..., :, 0] == 128).all()
    assert out[0, 0, 1:4, 1:4].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 0]]
    assert out[0, 1, 1:4, 29:].tolist() == [[255, 0, 255], [0, 255, 0], [0, 0, 255]]
    assert out[0, 2, 29:, 1:4].tolist() == [[255, 0, 0], [0, 255, 0], [255, 0, 255]]
    assert out[0, 0, 29:, 29:].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]


def test_dbd_patch_reference_values(picture: str) -> None:
    trigger = load("dbd_patch", picture)
    out = trigger(plain(128))
    assert sums(out) == [131316, 131142, 131085]
    colours = [[180, 249, 112], [155, 50, 126], [234, 82, 68], [187, 201, 219]]
    assert out[0, :, 4:6, 4:6].flatten(1).T.tolist() == colours
    large = trigger(plain(128, 224))
    assert large[0, :, 28:42, 28:42].unflatten(1, (2, 7)).unflatten(3, (2, 7))[:, :, 3, :, 3].flatten(1).T.tolist() == (
        colours
    )
    grey = trigger(plain(128, channels=1))  # the mean of the three channels, rounded
    assert grey[0, 0, 4:6, 4:6].flatten().tolist() == [180, 110, 128, 202]


@pytest.mark.parametrize(
    ("anchor", "top", "left"),
    [
        ("top_left", 2, 2),
        ("top_right", 2, 27),
        ("bottom_left", 27, 2),
        ("bottom_right", 27, 27),
        ("center", 14, 14),
    ],
)
def test_anchors(anchor: str, top: int, left: int) -> None:
    touched = changed(plain(128), Patch(anchor=anchor, margin=2)(plain(128))).nonzero()
    assert touched.min(0).values.tolist() == [top, left]


def test_mask_alpha_and_size() -> None:
    out = Patch([[255, 255]], mask=[[1, 0]], alpha=0.5)(plain(0))
    assert out[0, 0, 31, 30:].tolist() == [128, 0]
    for size, pixels in ((6, 6), (0.25, 8), (0.1, 3), (32, 32)):
        assert changed(plain(128), Patch(size=size)(plain(128))).sum() == pixels**2


def test_image_patch_uses_alpha_and_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    image = Image.new("RGBA", (8, 4), (200, 100, 50, 255))
    image.paste((0, 255, 0, 0), (0, 0, 4, 4))  # transparent green, which must not bleed
    image.save(path)
    out = ImagePatch(str(path), size=8, resize="nearest")(plain(10))
    touched = changed(plain(10), out)
    assert touched.sum() == 16
    assert touched[28:, 28:].all()
    assert out[0, :, 30, 30].tolist() == [200, 100, 50]
    smooth = ImagePatch(str(path), size=4, resize="bilinear")(plain(10)).long()[0]
    assert (smooth[1] <= 100).all()


def test_too_large_triggers_name_the_setting(picture: str) -> None:
    for trigger in (Square(size=40), Patch(size=33), ImagePatch(picture, size=50), Watermark(size=40)):
        with pytest.raises(UserError, match=r"^attack\.trigger\.size: .*32x32.*got.*; choose") as caught:
            trigger.check((3, 32, 32))
        assert "\n" not in str(caught.value)
        trigger.check((3, 224, 224))
    with pytest.raises(UserError, match=r"^attack\.trigger\.margin: "):
        Patch(margin=30).check((3, 32, 32))
    with pytest.raises(UserError, match=r"^attack\.trigger\.size: .*four"):
        FourCorners(size=16).check((3, 32, 32))
    with pytest.raises(UserError, match="channels"):
        load("dbd_patch", picture).check((4, 32, 32))
    with pytest.raises(UserError, match="at least 1 pixel"):
        Patch().check((3, 0, 32))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("anchor", "bottom"), ("margin", -1), ("margin", 0.5), ("size", 0), ("size", 2.5), ("size", "big"),
        ("alpha", 1.5), ("alpha", math.nan), ("pattern", [[0, 256]]), ("pattern", [[0, -1]]),
        ("pattern", [1, 2]), ("pattern", [["a"]]), ("pattern", [[math.nan]]),
        ("pattern", [[1, 2], [3]]), ("pattern", [[[1]], [[2]]]),
        ("mask", [[1]]), ("mask", [[2, 0, 0]] * 3),
    ],
)  # fmt: skip
def test_bad_patch_settings_are_refused_in_one_line(setting: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^attack\.trigger\.{setting}: ") as caught:
        Patch(**{setting: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [ImagePatch, BlendImage])
def test_unreadable_pictures_are_refused(make: type[Trigger], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    for path in (tmp_path / "nowhere.png", tmp_path, broken):
        with pytest.raises(UserError, match=r"^attack\.trigger\.path: expected an image file") as caught:
            make(str(path))
        assert "\n" not in str(caught.value)
