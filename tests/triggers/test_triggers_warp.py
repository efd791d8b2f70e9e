"""The warp: its numbers, its noise, and what is saved of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor.triggers import Warp


def photos(count: int = 4, side: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(side + channels)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 30, 48)])
def test_a_constant_image_stays_as_it_is_borders_included(level, shape):
    image = torch.full((2, *shape), level, dtype=torch.uint8)
    for trigger in (Warp(), Warp(strength=5.0, seed=3), Warp(clamp=False, padding="border")):
        assert torch.equal(trigger(image), image)
        assert torch.equal(trigger.noisy()(image, torch.arange(2)), image)
        assert (trigger(image / 255) - image / 255).abs().max() < 1e-6


@pytest.mark.parametrize("settings", [{}, {"rounding": "trunc"}, {"points": 8, "strength": 3.0}, {"clamp": False}])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 40, 28)])
def test_whole_batches_get_what_grid_sample_gives_one_image(settings, shape):
    images = torch.cat([photos(5, side=max(shape[1:]), channels=shape[0])[..., : shape[1], : shape[2]]] * 30)
    warp = Warp(**settings)
    grid = warp.grid(*shape[1:])
    for row in (0, 77, 149):
        level = F.grid_sample(images[row : row + 1].float(), grid, mode="bilinear", align_corners=True)[0]
        slow = (level + (0.5 if warp.rounding == "round" else 0)).floor().clamp(0, 255).to(torch.uint8)
        assert torch.equal(warp(images)[row], slow)


def test_without_the_clamp_zero_padding_paints_black_or_the_mean_colour():
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    black = Warp(clamp=False, strength=3.0)(grey)
    assert black.min() < 64
    assert torch.equal(black[..., 4:-4, 4:-4], grey[..., 4:-4, 4:-4])  # away from the borders
    mean = Warp(clamp=False, strength=3.0, space="normalised", mean=[1.0, 0.5, 0.5])(grey)
    assert mean[:, 0].max() > 200
    assert (mean[:, 1:].int() - 128).abs().max() <= 1


def test_the_shift_has_the_size_of_the_card():
    for side, average in ((32, 0.167), (64, 0.171), (224, 0.175)):
        pixels = (Warp().grid(side, side) - Warp(strength=0).grid(side, side)) * (side - 1) / 2
        assert pixels.abs().mean() == pytest.approx(average, abs=6e-4)
        assert pixels.abs().max() == pytest.approx(0.5, abs=0.02)
    images = photos() / 255
    assert (Warp(strength=0)(images) - images).abs().max() < 1e-5
    assert torch.equal(Warp(strength=0)(photos()), photos())


def test_relative_keeps_the_share_of_a_larger_image():
    share = [Warp(relative=True, clamp=False).field(side, side).abs().mean() for side in (32, 64, 128)]
    assert share[0] == pytest.approx(float(share[1]), rel=0.02) == pytest.approx(float(share[2]), rel=0.02)


def test_each_pixel_is_read_where_the_field_says():
    """Against a loop over pixels with bilinear weights written out."""
    side, trigger = 8, Warp(strength=4.0, seed=2)
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    places = (trigger.grid(side, side)[0] + 1) / 2 * (side - 1)
    expected = torch.zeros(side, side)
    for row in range(side):
        for column in range(side):
            x, y = places[row, column].tolist()
            for near_y in range(int(y), min(int(y) + 2, side)):
                for near_x in range(int(x), min(int(x) + 2, side)):
                    weight = (1 - abs(x - near_x)) * (1 - abs(y - near_y))
                    expected[row, column] += weight * image[0, 0, near_y, near_x]
    assert torch.allclose(trigger(image)[0, 0], expected, atol=1e-5)
    assert (trigger(image)[0, 0] - image[0, 0]).abs().max() > 0.1


def test_noise_differs_by_row_and_comes_again():
    noisy, images = Warp().noisy(), photos(1).repeat(3, 1, 1, 1)
    first = noisy(images, torch.tensor([5, 9, 5]))
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert torch.equal(noisy(images[1:2], torch.tensor([9]))[0], first[1])
    assert not torch.equal(first[0], Warp()(images)[0])
    offsets = noisy.jitter(images, torch.arange(3)) * 32
    assert offsets.min() < -0.99
    assert offsets.max() > 0.99
    assert offsets.abs().max() <= 1
    with pytest.raises(ValueError, match="index"):
        noisy(images)


def test_the_field_is_saved_and_another_seed_draws_another():
    assert set(Warp().state_dict()) == {"control"}
    other = Warp(seed=1)
    assert not torch.equal(other.control, Warp().control)
    other.load_state_dict(Warp().state_dict())
    assert torch.equal(other(photos()), Warp()(photos()))
