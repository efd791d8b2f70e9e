"""Blends: noise, the cartoon and pictures, their shares and how they are resized."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor.errors import UserError
from backdoor.triggers import BlendImage, BlendKitty, BlendNoise, BlendPerImageNoise
from backdoor.triggers.kitty import PINK, draw_kitty
from helpers.trigger import SIZES, photos, plain, white_file


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
