"""`bd.models` and `bd.triggers` have the choices of conf/, and triggers are torchvision's transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

import backdoor as bd
from backdoor.configs.places import conf_dir
from helpers.trigger import load, photos

TRIGGERS = sorted(path.stem for path in (conf_dir() / "trigger").glob("*.yaml"))
MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", TRIGGERS)
def test_each_trigger_of_conf_is_made_by_its_name(name, picture):
    kind = getattr(bd.triggers, name)
    settings = {"sequence": {"triggers": [bd.triggers.sig(delta=10), bd.triggers.grid()]}}.get(name, {})
    made = kind(**settings, **({"path": picture} if name in ("blend_image", "image_patch") else {}))
    images, index = photos(2), torch.arange(2)
    assert torch.equal(made(images, index), load(name, picture)(images, index))


@pytest.mark.parametrize("name", MODELS)
def test_each_model_of_conf_is_made_by_its_name(name):
    facts = {"num_classes": 7, "in_channels": 1, "image_size": 32}
    with torch.device("meta"):
        made = getattr(bd.models, name)(**facts)
        expected = instantiate(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"), **facts, mean=[0.5], std=[0.25])
    assert type(made) is type(expected)
    shapes, wanted = ({key: value.shape for key, value in one.state_dict().items()} for one in (made, expected))
    assert shapes == wanted


def test_a_model_without_facts_normalises_like_data_folder():
    model = bd.models.small_cnn(num_classes=3, width=4)
    assert model.mean.flatten().tolist() == [0.5] * 3
    assert model.std.flatten().tolist() == [0.25] * 3


def test_a_trigger_is_a_transform_of_every_kind_of_image():
    trigger, pixels = bd.triggers.grid(), photos(1)[0]
    stamped = trigger(pixels[None])[0]
    assert torch.equal(trigger(pixels), stamped)
    colour = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(trigger(colour)), stamped.permute(1, 2, 0).numpy())
    grey = Image.fromarray(pixels[0].numpy())
    assert trigger(grey).mode == "L"
    assert np.array_equal(np.asarray(trigger(grey)), stamped[0].numpy())
    floats = trigger(pixels / 255)
    assert floats.dtype == torch.float32
    assert torch.equal(floats, stamped / 255)
    half = trigger((pixels / 255).half())
    assert (half.dtype, half.shape) == (torch.float16, pixels.shape)


def test_it_works_inside_a_pipeline_of_torchvision():
    pixels, trigger = photos(1)[0], bd.triggers.blend_kitty(alpha=0.3)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    pipeline = v2.Compose(
        [v2.ToImage(), trigger, v2.RandomHorizontalFlip(p=1.0), v2.ToDtype(torch.float32, scale=True)]
    )
    found = pipeline(picture)
    assert isinstance(found, tv_tensors.Image)
    assert torch.allclose(found.as_subclass(Tensor), trigger(pixels).flip(-1) / 255)
    batch = trigger(tv_tensors.Image(pixels[None]))
    assert isinstance(batch, tv_tensors.Image)
    assert batch.shape == (1, *pixels.shape)


def test_what_is_no_image_is_told():
    trigger = bd.triggers.grid()
    for wrong in (np.zeros((3, 8, 8), np.uint8), torch.zeros(1, 1, 3, 8, 8), Image.new("RGBA", (8, 8))):
        with pytest.raises(ValueError, match="expected"):
            trigger(wrong)
    with pytest.raises(ValueError, match="a transform is called with the image only"):
        trigger(torch.zeros(3, 8, 8), 4)
