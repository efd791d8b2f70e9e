"""Triggers: every reference value, every setting's limits, and one contract over all of conf/trigger.

The expected numbers were computed independently of this code, on a constant grey image of level 128
unless a test says otherwise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from backdoor.errors import UserError
from backdoor.triggers import (
    BlendImage,
    BlendKitty,
    BlendNoise,
    BlendPerImageNoise,
    FourCorners,
    ImagePatch,
    Patch,
    Sequence,
    Sinusoid,
    Square,
    Strip,
    Trigger,
    Watermark,
)
from backdoor.triggers.kitty import PINK, draw_kitty

CONF = Path(__file__).parents[1] / "conf" / "trigger"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SIZES = (32, 64, 224)
PATCHES = {"grid": 9, "square": 9, "corners": 36, "dbd_patch": 4, "trojan": 9}  # pixels changed at 32x32


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A 12x8 PNG with soft alpha."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (8, 12, 4), generator=generator, dtype=torch.uint8)
    path = tmp_path_factory.mktemp("picture") / "trigger.png"
    Image.fromarray(pixels.numpy()).save(path)
    return str(path)


def white_file(folder: Path) -> str:
    path = folder / "white.png"
    Image.new("RGB", (5, 5), (255, 255, 255)).save(path)
    return str(path)


def load(name: str, picture: str, **changes: Any) -> Trigger:
    """The trigger of conf/trigger/<name>.yaml, a required path filled in."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    missing = OmegaConf.missing_keys(config)
    for key in missing:
        OmegaConf.update(config, key, picture)
    trigger = instantiate(OmegaConf.merge(config, changes), _convert_="all")
    assert isinstance(trigger, Trigger)
    return trigger


def plain(level: int, side: int = 32, channels: int = 3) -> Tensor:
    return torch.full((1, channels, side, side), level, dtype=torch.uint8)


def photos(count: int = 3, side: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(side + channels)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def sums(images: Tensor) -> list[int]:
    return images[0].long().sum((1, 2)).tolist()


def changed(before: Tensor, after: Tensor) -> Tensor:
    """bool (H, W): pixels of the first image that differ in any channel."""
    return (before[0] != after[0]).any(0)


# --- the contract, over every YAML ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_yaml_opens_with_a_comment_for_the_list(name: str) -> None:
    first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 10


@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_uint8_out_of_place_same_shape_and_something_changes(name: str, side: int, picture: str) -> None:
    trigger, images = load(name, picture), photos(2, side)
    before = images.clone()
    trigger.check((3, side, side))
    out = trigger(images, torch.arange(2))
    assert torch.equal(images, before)
    assert out.data_ptr() != images.data_ptr()
    assert (out.dtype, out.shape, out.device) == (images.dtype, images.shape, images.device)
    assert not torch.equal(out, images)


@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_float_equals_uint8_within_half_a_level(name: str, side: int, picture: str) -> None:
    trigger, images = load(name, picture), photos(2, side)
    floats = images / 255
    before = floats.clone()
    out = trigger(floats, torch.arange(2))
    assert torch.equal(floats, before)
    assert (out.dtype, out.shape) == (floats.dtype, floats.shape)
    assert out.min() >= 0
    assert out.max() <= 1
    assert (out * 255 - trigger(images, torch.arange(2)).float()).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("rounding", ["round", "trunc"])
@pytest.mark.parametrize("name", NAMES)
def test_quantised_floats_are_the_file_on_disk(name: str, rounding: str, picture: str) -> None:
    images = photos(2)
    trigger = load(name, picture, rounding=rounding, quantize=True)
    as_file = load(name, picture, rounding=rounding)(images, torch.arange(2))
    levels = trigger(images / 255, torch.arange(2)) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    # A level may differ only where the float path lands on the other side of a rounding edge.
    assert (levels.round() == as_file.float()).float().mean() > 0.99
    assert (levels - as_file.float()).abs().max() < 1.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_other_float_types_keep_their_type(name: str, dtype: torch.dtype, picture: str) -> None:
    trigger, images = load(name, picture), (photos(2) / 255).to(dtype)
    out = trigger(images, torch.arange(2))
    assert out.dtype == dtype
    wanted = trigger(images.float(), torch.arange(2))
    assert torch.allclose(out.float(), wanted, atol=1e-6 + torch.finfo(dtype).eps)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_a_loop_over_images(name: str, count: int, picture: str) -> None:
    trigger, images, index = load(name, picture), photos(count), torch.arange(count) * 11 + 5
    for batch in (images, images / 255):
        out = trigger(batch, index)
        assert out.shape == batch.shape
        for row in range(count):
            assert torch.equal(out[row], trigger(batch[row : row + 1], index[row : row + 1])[0])


@pytest.mark.parametrize("name", NAMES)
def test_chunks_leave_no_seam(name: str, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trigger, images, index = load(name, picture), photos(5), torch.arange(5)
    whole = trigger(images, index)
    monkeypatch.setattr("backdoor.triggers.base.CPU_CHUNK", 2 * 3 * 32 * 32)
    assert torch.equal(trigger(images, index), whole)


@pytest.mark.parametrize("name", NAMES)
def test_writing_in_place_gives_the_same_pixels_and_leaves_other_rows(
    name: str, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("base", "local"):
        monkeypatch.setattr(f"backdoor.triggers.{module}.CPU_CHUNK", 2 * 3 * 32 * 32)
    trigger, images = load(name, picture), photos(9)
    rows, index = torch.tensor([7, 0, 3, 4, 8]), torch.tensor([70, 5, 31, 4, 8])
    expected = images.clone()
    expected[rows] = trigger(images[rows], index)
    trigger.write(images, rows, index)
    assert torch.equal(images, expected)


@pytest.mark.parametrize("name", NAMES)
def test_same_settings_same_pixels_whatever_the_global_generator(name: str, picture: str) -> None:
    images, index = photos(2), torch.arange(2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = load(name, picture)(images, index)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12345)
    assert torch.equal(load(name, picture)(images, index), first)


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_work(name: str, picture: str) -> None:
    trigger, images = load(name, picture), photos(2, channels=1)
    trigger.check((1, 32, 32))
    assert trigger(images, torch.arange(2)).shape == images.shape


@pytest.mark.parametrize("shape", [(3, 30, 48), (1, 28, 28), (3, 97, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_odd_shapes_work(name: str, shape: tuple[int, int, int], picture: str) -> None:
    load(name, picture).check(shape)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_enters_the_state_dict_and_copies_agree(name: str, picture: str) -> None:
    trigger, images = load(name, picture), photos(2)
    out = trigger(images, torch.arange(2))
    assert trigger.state_dict() == {}
    assert torch.equal(trigger.at_test()(images, torch.arange(2)), out)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_float_image(name: str, picture: str) -> None:
    images = (photos(1) / 255).requires_grad_()
    load(name, picture)(images, torch.arange(1)).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [*PATCHES, "image_patch"])
def test_patch_leaves_the_rest_bit_identical(name: str, picture: str) -> None:
    trigger = load(name, picture)
    touched = changed(plain(128), trigger(plain(128)))
    for images in (photos(4), photos(4) / 255, (photos(4) / 255).half()):
        out = trigger(images)
        assert torch.equal(out[..., ~touched], images[..., ~touched])
    assert 0 < touched.sum() < 60


@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("name", PATCHES)
def test_patch_keeps_its_share_of_the_area(name: str, side: int, picture: str) -> None:
    share = changed(plain(128, side), load(name, picture)(plain(128, side))).float().mean()
    assert share == pytest.approx(PATCHES[name] / 1024, rel=0.2)


@pytest.mark.parametrize("name", ["grid", "square", "corners", "dbd_patch"])
def test_opaque_patch_twice_is_once(name: str, picture: str) -> None:
    trigger = load(name, picture)
    once = trigger(photos())
    assert torch.equal(trigger(once), once)


@pytest.mark.parametrize("name", ["blend_noise", "blend_kitty", "sig", "strip", "trojan"])
def test_blend_and_addition_twice_is_more(name: str, picture: str) -> None:
    trigger = load(name, picture)
    once = trigger(photos())
    assert not torch.equal(trigger(once), once)


# --- rounding and overflow --------------------------------------------------------------------------


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
        Patch()(torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="images: expected"):
        Patch()(torch.zeros(1, 3, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="index: expected"):
        Patch()(torch.zeros(2, 3, 32, 32), torch.arange(3))


# --- patches ----------------------------------------------------------------------------------------


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


# --- blends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIZES)
def test_blend_is_linear_in_alpha_from_nothing_to_the_pattern(side: int, tmp_path: Path) -> None:
    images = photos(2, side)
    pattern = BlendNoise(seed=3, alpha=1)(images)
    assert torch.equal(BlendNoise(seed=3, alpha=0)(images), images)
    assert torch.equal(BlendNoise(seed=3, alpha=0)(images / 255), images / 255)
    assert torch.equal(pattern[0], pattern[1])
    wanted = 0.7 * images.double() + 0.3 * pattern.double()
    assert (BlendNoise(seed=3, alpha=0.3)(images).double() - wanted).abs().max() <= 0.5 + 1e-4
    assert (BlendImage(white_file(tmp_path), alpha=1)(images) == 255).all()


def test_noise_is_uniform_and_depends_on_the_seed_only() -> None:
    field = BlendNoise(seed=0, alpha=1)(plain(0, 224))
    assert field.unique().numel() == 256
    assert field.float().mean() == pytest.approx(127.5, abs=1)
    assert not torch.equal(BlendNoise(seed=1, alpha=1)(plain(0, 224)), field)


def test_per_image_noise_follows_the_index_not_the_position() -> None:
    images, trigger = plain(128).repeat(3, 1, 1, 1), BlendPerImageNoise(seed=2)
    out = trigger(images, torch.tensor([7, 9, 7]))
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    assert torch.equal(trigger(images[:1], torch.tensor([9]))[0], out[1])
    other = BlendPerImageNoise(seed=3)(images, torch.tensor([7, 9, 7]))
    assert not torch.equal(other[0], out[0])
    with pytest.raises(ValueError, match="index: expected"):
        trigger(images)


@pytest.mark.parametrize("side", SIZES)
def test_kitty_has_the_statistics_of_the_cartoon(side: int) -> None:
    drawing = draw_kitty(side, side)
    means = drawing.mean((1, 2)).tolist()
    assert means == pytest.approx([214.4, 191.8, 200.4], abs=10)
    pink = (drawing - torch.tensor(PINK)[:, None, None]).abs().amax(0) < 40
    assert 0.07 <= pink.float().mean() <= 0.13
    assert (drawing > 230).all(0).float().mean() == pytest.approx(0.731, abs=0.08)
    assert ((drawing >= 0) & (drawing <= 255)).all()
    assert torch.equal(BlendKitty(alpha=1)(plain(7, side))[0], (drawing + 0.5).floor().to(torch.uint8))


def test_blend_image_alpha_is_a_mask(tmp_path: Path) -> None:
    path = tmp_path / "logo.png"
    logo = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    logo.paste((255, 255, 255, 255), (0, 0, 16, 32))
    logo.save(path)
    out = BlendImage(str(path), alpha=0.2)(plain(128))
    assert out[..., :16].unique().tolist() == [153]
    assert torch.equal(out[..., 16:], plain(128)[..., 16:])


def test_resize_choices_differ_and_bicubic_follows_pillow(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo = Image.fromarray(photos(1, 96)[0].permute(1, 2, 0).numpy())
    photo.save(path)
    pillow = torch.from_numpy(np.array(photo.resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    ours = BlendImage(str(path), alpha=1, resize="bicubic")(plain(0))[0]
    assert (ours.int() - pillow.int()).abs().max() <= 1
    rough = BlendImage(str(path), alpha=1, antialias=False)(plain(0))[0]
    assert not torch.equal(rough, BlendImage(str(path), alpha=1)(plain(0))[0])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, "much", math.inf])
def test_bad_blend_shares_are_refused(alpha: Any) -> None:
    with pytest.raises(UserError, match=r"^attack\.trigger\.alpha: "):
        BlendNoise(alpha=alpha)
    with pytest.raises(UserError, match=r"^attack\.trigger\.test_alpha: "):
        BlendNoise(test_alpha=alpha)


# --- signals ----------------------------------------------------------------------------------------

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


# --- watermark --------------------------------------------------------------------------------------

WRAPPED = [
    [[79, 47, 157], [207, 9, 120], [3, 134, 118]],
    [[3, 115, 104], [136, 128, 241], [168, 17, 122]],
    [[53, 248, 51], [254, 160, 18], [132, 189, 118]],
]
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


# --- composition and test time ----------------------------------------------------------------------


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
