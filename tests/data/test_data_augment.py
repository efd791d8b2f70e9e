from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdoor.data.augment import (
    copy_windows,
    draw_flips,
    draw_offsets,
    gather_windows,
    make_augment,
    padding_of,
)
from backdoor.errors import UserError


def batch(shape: tuple[int, ...] = (16, 3, 32, 32), dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def slow(name: str, images: Tensor, generator: torch.Generator) -> Tensor:
    """Pixel by pixel, from the definition: zero outside the image, then mirrored."""
    count, _, height, width = images.shape
    padding = padding_of(height)
    offsets = draw_offsets(images, generator) if "crop" in name else torch.full((2, count), padding)
    flips = draw_flips(count, generator).tolist() if "flip" in name else []
    result = torch.zeros_like(images)
    for sample in range(count):
        for y in range(height):
            for x in range(width):
                row = y + int(offsets[0, sample]) - padding
                column = (width - 1 - x if sample in flips else x) + int(offsets[1, sample]) - padding
                if 0 <= row < height and 0 <= column < width:
                    result[sample, :, y, x] = images[sample, :, row, column]
    return result


@pytest.mark.parametrize("name", ["none", "flip", "crop", "crop_flip"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (5, 1, 28, 20), (1, 3, 3, 3)])
def test_same_as_the_slow_version(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    images = batch(shape, dtype)
    before = images.clone()
    fast = make_augment(name)(images, torch.Generator().manual_seed(7))
    assert fast.dtype == dtype
    torch.testing.assert_close(fast, slow(name, images, torch.Generator().manual_seed(7)), rtol=0, atol=0)
    torch.testing.assert_close(images, before, rtol=0, atol=0)


def test_the_gather_for_other_devices_gives_what_the_copies_give() -> None:
    images = batch((32, 3, 40, 48))
    offsets = draw_offsets(images, torch.Generator().manual_seed(3))
    assert torch.equal(gather_windows(images, offsets), copy_windows(images, offsets))


def test_draws_are_per_sample_and_cover_every_offset() -> None:
    images = batch((1, 3, 32, 32)).expand(500, 3, 32, 32).contiguous()
    generator = torch.Generator().manual_seed(0)
    offsets = draw_offsets(images, generator)
    assert set(offsets[0].tolist()) == set(offsets[1].tolist()) == set(range(9))
    changed = (make_augment("flip")(images, generator) != images).flatten(1).any(1)
    assert 200 < int(changed.sum()) < 300


def test_same_generator_state_same_batch_and_other_state_other_batch() -> None:
    augment, images = make_augment("crop_flip"), batch()
    first, again, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("height", "padding"), [(3, 3), (16, 4), (28, 4), (32, 4), (64, 8), (224, 28)])
def test_padding_grows_with_the_image(height: int, padding: int) -> None:
    assert padding_of(height) == padding


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UserError, match=r"data\.augment=crop_flp.*did you mean 'crop_flip'.*none"):
        make_augment("crop_flp")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["flip", "crop", "crop_flip"])
def test_the_device_gives_what_the_cpu_gives(name: str) -> None:
    images = batch((64, 3, 32, 32))
    cpu, device = (make_augment(name)(images.to(where), torch.Generator().manual_seed(2)) for where in ("cpu", "cuda"))
    assert torch.equal(cpu, device.cpu())
