"""One contract over every trigger in conf/trigger: types, shapes, chunks, copies, gradients."""

from __future__ import annotations

import pytest
import torch

from helpers.trigger import CONF, PATCHES, SIZES, changed, load, photos, plain

NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SAVED = {"warp": {"control"}}  # with the run, as trigger.safetensors


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
    monkeypatch.setattr("backdoor.triggers.chunks.CPU_CHUNK", 2 * 3 * 32 * 32)
    assert torch.equal(trigger(images, index), whole)


@pytest.mark.parametrize("name", NAMES)
def test_writing_in_place_gives_the_same_pixels_and_leaves_other_rows(
    name: str, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backdoor.triggers.chunks.CPU_CHUNK", 2 * 3 * 32 * 32)
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
def test_only_what_was_drawn_enters_the_state_dict_and_copies_agree(name: str, picture: str) -> None:
    trigger, images = load(name, picture), photos(2)
    out = trigger(images, torch.arange(2))
    assert set(trigger.state_dict()) == SAVED.get(name, set())
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
