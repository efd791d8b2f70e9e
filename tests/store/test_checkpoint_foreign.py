"""Checkpoints of other code: nested, wrapped, and under other names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from safetensors.torch import load_file
from torch import Tensor

from backdoor.errors import UserError
from backdoor.models import ImageClassifier, WideResNet, preact_resnet18, torchvision_net
from backdoor.store.numpy_scalars import numbers_allowed
from backdoor.store.weights import load_weights, rename, save_weights
from helpers.checkpoint import identical, official_abl, scattered, wrn


def backdoorbench_preact(model: ImageClassifier) -> dict[str, Tensor]:
    """The weights under the names of BackdoorBench's PreActResNet18: layer1 to layer4, shortcut.0, linear."""
    tensors = {}
    for name, value in model.state_dict().items():
        head, _, rest = name.partition(".")
        if head == "head":
            tensors[f"linear.{rest}"] = value
        elif rest.startswith("groups."):
            _, group, rest = rest.split(".", 2)
            tensors[f"layer{int(group) + 1}.{rest.replace('shortcut.', 'shortcut.0.')}"] = value
        elif head == "backbone":
            tensors[rest] = value
    return tensors


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".tar"])
def test_a_plain_state_dict(tmp_path: Path, suffix: str) -> None:
    saved, loaded = wrn(1), wrn(2)
    torch.save(saved.state_dict(), tmp_path / f"m{suffix}")
    load_weights(loaded, tmp_path / f"m{suffix}")
    assert identical(saved, loaded)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("state_dict", ""),
        ("state_dict", "module."),
        ("state_dict", "model."),
        ("state_dict", "model._orig_mod."),
        ("model_state_dict", "_orig_mod."),
        ("model", "_orig_mod.module."),
        ("net", "module."),
    ],
)
def test_nested_and_wrapped(tmp_path: Path, key: str, prefix: str) -> None:
    saved, loaded, path = wrn(1), wrn(2), tmp_path / "m.pt"
    optimizer = torch.optim.SGD(saved.parameters(), lr=0.1, momentum=0.9)
    saved(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    inside = {prefix + name: value for name, value in saved.state_dict().items()}
    torch.save({"epoch": 41, "optimizer": optimizer.state_dict(), "acc": 91.8, key: inside}, path)
    load_weights(loaded, path)
    assert identical(saved, loaded)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, np.bool_, ">f4", np.complex64])
@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_beside_the_tensors(tmp_path: Path, dtype: Any, zipped: bool) -> None:
    saved, loaded, again, path = wrn(1), wrn(2), wrn(3), tmp_path / "m.pt"
    extra = {"epoch": np.int64(41), "best_acc": np.array(3, dtype)[()], "log": [np.float64(0.5)]}
    torch.save({**extra, "state_dict": saved.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    load_weights(loaded, path)
    assert identical(saved, loaded)
    torch.save({**saved.state_dict(), "epoch": np.int64(41), "best": 0.5, "arch": "wrn"}, path)
    load_weights(again, path)
    assert identical(saved, again)


def test_a_number_keeps_its_value(tmp_path: Path) -> None:
    numbers = [np.float64(85.4), np.int64(-3), np.bool_(True), np.array(1.5, ">f4")[()]]
    torch.save(numbers, tmp_path / "m.pt")
    with numbers_allowed():
        assert torch.load(tmp_path / "m.pt", weights_only=True) == numbers


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_modules_and_their_files(tmp_path: Path, prefix: str, compiled: bool) -> None:
    saved, loaded, path = wrn(1), wrn(2), tmp_path / "m.pt"
    torch.save({prefix + name: value for name, value in saved.state_dict().items()}, path)
    load_weights(torch.compile(loaded) if compiled else loaded, path)  # type: ignore[arg-type]
    assert identical(saved, loaded)


def test_a_compiled_part_of_a_module(tmp_path: Path) -> None:
    saved, loaded, again = wrn(1), wrn(2), wrn(3)
    saved.backbone = torch.compile(saved.backbone)  # type: ignore[assignment]
    assert "backbone._orig_mod.conv1.weight" in saved.state_dict()
    torch.save(saved.state_dict(), tmp_path / "m.pt")
    save_weights(saved, tmp_path / "m.safetensors")
    load_weights(loaded, tmp_path / "m.pt")
    load_weights(again, tmp_path / "m.safetensors")
    assert identical(wrn(1), loaded)
    assert identical(wrn(1), again)
    assert load_file(tmp_path / "m.safetensors").keys() == wrn(1).state_dict().keys()


def test_a_refusal_names_the_network_inside_the_compiled_one(tmp_path: Path) -> None:
    torch.save(wrn(1, depth=22).state_dict(), tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"model= \(WideResNet\)"):
        load_weights(torch.compile(wrn(1)), tmp_path / "m.pt")  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [lambda model: model.state_dict(), official_abl])
def test_counters_of_batches_may_be_missing(tmp_path: Path, names: Callable[[WideResNet], dict[str, Tensor]]) -> None:
    saved, loaded = wrn(1), wrn(2)
    tensors = {name: value for name, value in names(saved).items() if not name.endswith("num_batches_tracked")}
    assert len(tensors) <= len(names(saved)) - 10
    torch.save(tensors, tmp_path / "m.pt")
    load_weights(loaded, tmp_path / "m.pt")
    counters = tuple(name for name in loaded.state_dict() if name.endswith("num_batches_tracked"))
    assert identical(saved, loaded, but=counters)
    assert all(loaded.state_dict()[name] == 43 for name in counters), "they keep the model's own"


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_official_abl_names(tmp_path: Path, prefix: str, legacy: bool) -> None:
    saved, loaded, path = wrn(1, mean=0.3), wrn(2, mean=0.6), tmp_path / "WRN-16-1.tar"
    tensors = {prefix + name: value for name, value in official_abl(saved).items()}
    assert len(tensors) == len(saved.state_dict()) - 2  # all but mean and std
    content = {
        "epoch": 41,
        "state_dict": tensors,
        "clean_acc": 85.4,
        "bad_acc": 100.0,
        "optimizer": {"state": {}},
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    load_weights(loaded, path)
    assert identical(saved, loaded, but=("mean", "std"))
    assert (loaded.mean == 0.6).all(), "a checkpoint without normalisation keeps ours"
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), saved(images - (0.6 - 0.3)))


@pytest.mark.parametrize("final_bn", [False, True])
def test_backdoorbench_names(tmp_path: Path, final_bn: bool) -> None:
    options: dict[str, Any] = {"num_classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3, "final_bn": final_bn}
    saved, loaded = scattered(preact_resnet18(**options), 1), preact_resnet18(**options)
    tensors = backdoorbench_preact(saved)
    assert {"conv1.weight", "layer2.0.shortcut.0.weight", "layer4.1.bn2.running_var", "linear.bias"} <= set(tensors)
    torch.save({"model_name": "preactresnet18", "num_classes": 10, "model": tensors}, tmp_path / "attack_result.pt")
    load_weights(loaded, tmp_path / "attack_result.pt")
    assert identical(saved, loaded)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
def test_torchvision_names(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    theirs = scattered(getattr(tv, name)(weights=None, num_classes=10), 3).eval()
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    ours = torchvision_net(name=name, num_classes=10, mean=[0.5] * 3, std=[0.25] * 3, stem="imagenet").eval()
    load_weights(ours, tmp_path / "m.pth")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs((images - 0.5) / 0.25))


@pytest.mark.parametrize("name", ["vgg19", "vgg19_bn", "densenet161", "convnext_tiny", "efficientnet_b3"])
def test_torchvision_names_of_the_large(name: str) -> None:
    with torch.device("meta"):  # names and shapes alone
        theirs = getattr(tv, name)(weights=None, num_classes=10).state_dict()
        ours = torchvision_net(name=name, num_classes=10, mean=[0.5] * 3, std=[0.25] * 3, stem="imagenet")
    own = {key: value.shape for key, value in ours.state_dict().items() if key not in ("mean", "std")}
    assert {key: value.shape for key, value in rename(theirs, own, ours.foreign_keys).items()} == own


def test_torchvision_names_of_vit() -> None:
    with torch.device("meta"):
        theirs = tv.vit_b_16(weights=None, num_classes=10).state_dict()
        options: dict[str, Any] = {"num_classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3}
        ours = torchvision_net(name="vit_b_16", stem="imagenet", resize=224, **options)
    own = {key: value.shape for key, value in ours.state_dict().items() if key not in ("mean", "std")}
    assert {key: value.shape for key, value in rename(theirs, own, ours.foreign_keys).items()} == own
