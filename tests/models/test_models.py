"""Every model of conf/model keeps the contract; WRN-16-1 is the network of the ABL paper's code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor.errors import UserError
from backdoor.models import ImageClassifier, WideResNet, small_cnn, torchvision_net

CONF = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
LIGHT = ["mobilenet_v3_large", "preact_resnet18", "resnet18", "small_cnn", "vit_b_16", "wrn16_1"]
PARAMETERS = {
    "convnext_tiny": 27_823_498,
    "densenet161": 26_482_570,
    "efficientnet_b3": 10_711_602,
    "mobilenet_v3_large": 4_214_842,
    "preact_resnet18": 11_171_146,
    "resnet18": 11_173_962,
    "small_cnn": 94_762,
    "vgg19": 20_029_514,
    "vgg19_bn": 20_040_522,
    "vit_b_16": 85_152_010,
    "wrn16_1": 175_066,
    "wrn28_10": 36_479_194,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny batches run faster on one thread, above all while other processes compete for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name: str, channels: int = 3, size: int = 32, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    cfg.update(options)
    shape = {"num_classes": 10, "in_channels": channels, "image_size": size}
    return instantiate(cfg, **shape, mean=[0.5] * channels, std=[0.25] * channels, _convert_="all")


def pictures(count: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def calibrated(name: str) -> ImageClassifier:
    """An untrained copy in eval mode whose BatchNorms know the scale of their inputs.

    With the initial statistics of 0 and 1 the signal dies out: EfficientNet's logits ignore the image.
    """
    model = build(name).train()
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(pictures(4))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


@pytest.fixture(scope="module", params=NAMES)
def standard(request: pytest.FixtureRequest) -> tuple[str, ImageClassifier]:
    """The name and a calibrated copy of each model, shared by the tests that do not change its weights."""
    return request.param, calibrated(request.param)


def test_forward_is_the_head_of_the_features(standard: tuple[str, ImageClassifier]) -> None:
    model, images = standard[1], pictures()
    with torch.no_grad():
        features, logits = model.features(images), model(images)
        assert features.shape == (2, model.head.in_features)
        assert logits.shape == (2, 10)
        assert torch.isfinite(logits).all()
        assert torch.equal(model.head(features), logits)
        assert not torch.equal(logits[0], logits[1]), "the logits ignore the image"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_a_step_keeps_it_finite(name: str) -> None:
    model, labels = calibrated(name), torch.tensor([3, 7])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    # In eval mode first: in train mode, stochastic depth may drop a block of so small a batch.
    F.cross_entropy(model(pictures()), labels).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, f"the gradient of {key} is zero"
    optimizer.zero_grad()
    before = model.head.weight.detach().clone()
    F.cross_entropy(model.train()(pictures()), labels).backward()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)
    for key, value in model.state_dict().items():
        assert torch.isfinite(value).all(), key
    with torch.no_grad():
        assert torch.isfinite(model.eval()(pictures())).all()


def test_channels_last_and_bf16(standard: tuple[str, ImageClassifier]) -> None:
    model, images = standard[1], pictures()
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)
    assert logits.dtype == torch.bfloat16
    # 8 bits of mantissa through dozens of layers: the same direction, not the same digits.
    assert F.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_one_channel_of_28_pixels(name: str) -> None:
    model = build(name, channels=1, size=28).eval()
    with torch.no_grad():
        assert model(pictures(1, channels=1, size=28)).shape == (1, 10)


@pytest.mark.parametrize("name", LIGHT)
def test_64_pixels(name: str) -> None:
    with torch.no_grad():
        assert build(name, size=64).eval()(pictures(1, size=64)).shape == (1, 10)


def test_parameters_are_as_the_comment_says(standard: tuple[str, ImageClassifier]) -> None:
    name, model = standard
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[name]
    comment = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    found = re.search(r"\(([\d.,]+)( [kM])? parameters", comment)
    assert found, f"{name}.yaml: the first line gives no number of parameters"
    unit = {None: 1, " k": 1e3, " M": 1e6}[found[2]]
    decimals = len(found[1].partition(".")[2])
    assert round(count / unit, decimals) == float(found[1].replace(",", ""))


@pytest.mark.parametrize("name", ["wrn16_1", "small_cnn", "resnet18"])
def test_normalisation_is_inside(name: str) -> None:
    torch.manual_seed(0)
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    mean, std, shape = (
        [0.1, 0.4, 0.7],
        [0.2, 0.5, 0.25],
        {"num_classes": 10, "in_channels": 3, "image_size": 32},
    )
    inside = instantiate(cfg, **shape, mean=mean, std=std, _convert_="all").eval()
    outside = instantiate(cfg, **shape, mean=[0.0] * 3, std=[1.0] * 3, _convert_="all").eval()
    outside.load_state_dict({k: v for k, v in inside.state_dict().items() if k not in ("mean", "std")}, strict=False)
    images = pictures()
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(inside(images), outside(by_hand), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(inside(images), outside(images), atol=1e-3)


def test_resize_is_inside() -> None:
    model = build("small_cnn", resize=16).eval()
    plain = build("small_cnn").eval()
    images = pictures()
    small = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert torch.equal(model(images), plain(small))
        assert torch.equal(model(small), plain(small)), "images of the right size are left as they are"
        assert model(images[..., :16]).shape == (2, 10), "a wrong height alone is resized too"


def test_imagenet_stem_is_torchvisions_own_network() -> None:
    import torchvision.models as tv

    ours = build("resnet18", stem="imagenet", resize=64).eval()
    theirs = tv.resnet18(weights=None, num_classes=10).eval()
    pairs = ((k.removeprefix("backbone.").replace("head.", "fc."), v) for k, v in ours.state_dict().items())
    theirs.load_state_dict({k: v for k, v in pairs if k not in ("mean", "std")})
    images = pictures(size=64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs((images - 0.5) / 0.25))


NORM: dict[str, Any] = {"num_classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: WideResNet(depth=17, widen=1, **NORM), r"^model\.depth=17: expected 6n \+ 4"),
        (lambda: WideResNet(depth=4, widen=1, **NORM), r"^model\.depth=4:"),
        (lambda: WideResNet(depth=16, widen=0, **NORM), r"^model\.widen=0:"),
        (lambda: small_cnn(image_size=7, **NORM), r"^model=small_cnn: .*8 pixels.*got 7"),
        (lambda: small_cnn(width=0, **NORM), r"^model\.width=0:"),
        (lambda: small_cnn(resize=-1, **NORM), r"resize=-1|got -1"),
        (lambda: torchvision_net(name="resnet81", **NORM), r"^model\.name=resnet81: did you mean 'resnet18'"),
        (
            lambda: torchvision_net(name="resnet18", stem="smal", **NORM),
            r"^model\.stem=smal: did you mean 'small'",
        ),
        (lambda: torchvision_net(name="resnet18", resize=0, **NORM), r"^model\.resize=0:"),
        (
            lambda: torchvision_net(name="vit_b_16", image_size=31, **NORM),
            r"^model=vit_b_16: images of 31 pixels",
        ),
        (lambda: small_cnn(**{**NORM, "std": [0.2, 0.0, 0.2]}), r"^data\.mean=.*std > 0"),
        (lambda: small_cnn(**{**NORM, "std": [0.2]}), r"^data\.mean="),
    ],
)
def test_wrong_settings_are_named(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
