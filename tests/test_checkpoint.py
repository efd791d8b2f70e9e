"""Checkpoints: what is written comes back bit for bit, foreign ones are read, and nothing runs code."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from safetensors.torch import load_file
from torch import Tensor, nn

from backdoor.checkpoint import load_weights, rename, save_weights
from backdoor.errors import UserError
from backdoor.models import ImageClassifier, WideResNet, preact_resnet18, small_cnn, torchvision_net


def wrn(seed: int, mean: float = 0.5, classes: int = 10, depth: int = 16) -> WideResNet:
    """WRN-16-1 of random weights and statistics."""
    torch.manual_seed(seed)
    model = WideResNet(depth=depth, widen=1, num_classes=classes, mean=[mean] * 3, std=[0.25] * 3).eval()
    return scattered(model, seed)


def scattered(model: Any, seed: int) -> Any:
    """The model with positive random BatchNorm statistics, so that a swapped tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(seed + 41)
    return model


def identical(left: nn.Module, right: nn.Module, but: tuple[str, ...] = ()) -> bool:
    """Whether all parameters and buffers agree bit for bit."""
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in ours if k not in but
    )


def official_abl(model: WideResNet) -> dict[str, Tensor]:
    """The model's weights under the names of the authors' ABL code, in that code's order; no mean and std."""
    ours = model.state_dict()
    tensors: dict[str, Tensor] = OrderedDict()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    tensors["conv1.weight"] = ours["backbone.conv1.weight"]
    for group in (1, 2, 3):
        for block in (0, 1):
            source, name = f"backbone.groups.{group - 1}.{block}.", f"block{group}.layer.{block}."
            for layer in (1, 2):
                for part in norm:
                    tensors[f"{name}bn{layer}.{part}"] = ours[f"{source}bn{layer}.{part}"]
                tensors[f"{name}conv{layer}.weight"] = ours[f"{source}conv{layer}.weight"]
            if group > 1 and block == 0:
                tensors[f"{name}convShortcut.weight"] = ours[f"{source}shortcut.weight"]
    for part in norm:
        tensors[f"bn1.{part}"] = ours[f"backbone.bn.{part}"]
    tensors["fc.weight"], tensors["fc.bias"] = ours["head.weight"], ours["head.bias"]
    return tensors


def backdoorbench_preact(model: ImageClassifier) -> dict[str, Tensor]:
    """The same for BackdoorBench's PreActResNet18: layer1 to layer4, shortcut.0, linear."""
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


def refused(model: nn.Module, path: Path, said: str) -> str:
    """The one line of the refusal, which must match and leave the model as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=said) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert message.startswith(f"attack.model={path}: ")
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return message


def test_safetensors_round_trip_is_bit_identical(tmp_path: Path) -> None:
    path, saved, loaded = tmp_path / "model.safetensors", wrn(1, mean=0.4), wrn(2)
    save_weights(saved.to(memory_format=torch.channels_last), path, {"epoch": "3"})
    assert not identical(saved, loaded)
    load_weights(loaded, path)
    assert identical(saved, loaded)
    images = torch.rand(4, 3, 32, 32)
    loaded.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(saved(images), loaded(images))
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_tied_weights_and_special_values_come_back(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        first = nn.Linear(3, 3)
        second = nn.Linear(3, 3)
        second.weight = first.weight
        return nn.Sequential(first, second)

    saved, loaded = tied(), tied()
    saved[0].bias.data = torch.tensor([float("inf"), -0.0, 1e-45])  # type: ignore[index]
    save_weights(saved, tmp_path / "m.safetensors")
    load_weights(loaded, tmp_path / "m.safetensors")
    for name, value in saved.state_dict().items():
        assert torch.equal(value.view(torch.int32), loaded.state_dict()[name].view(torch.int32))


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


def test_another_architecture_names_the_first_keys(tmp_path: Path) -> None:
    other = small_cnn(num_classes=10, mean=[0.5] * 3, std=[0.25] * 3)
    save_weights(other, tmp_path / "m.safetensors")
    said = "missing backbone.conv1.weight, backbone.groups.0.0.bn1"
    message = refused(wrn(1), tmp_path / "m.safetensors", said)
    assert "unexpected backbone.0.weight" in message
    assert "model=" in message
    assert re.search(r"and \d+ more", message)


def test_deeper_network_is_another_architecture(tmp_path: Path) -> None:
    torch.save(wrn(1, depth=22).state_dict(), tmp_path / "m.pt")
    refused(wrn(1), tmp_path / "m.pt", r"unexpected backbone\.groups\.0\.2\.bn1\.weight.*choose the model=")


def test_another_number_of_classes_names_the_shapes(tmp_path: Path) -> None:
    torch.save(official_abl(wrn(1, classes=43)), tmp_path / "m.pt")
    refused(wrn(1), tmp_path / "m.pt", r"head\.weight: expected shape \(10, 64\), got \(43, 64\).*model=")


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors", "folder"])
def test_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    refused(wrn(1), tmp_path / name, "no such file; expected a checkpoint")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".legacy.pt"])
@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.5, 0.99])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path, model = tmp_path / f"m{suffix}", wrn(1)
    if suffix == ".safetensors":
        save_weights(model, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization="legacy" not in suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(model, path, "not a readable")


def test_any_cut_ends_in_the_one_line(tmp_path: Path) -> None:
    # torch's unpickler ends in IndexError, struct.error, AssertionError and others, by where the bytes stop.
    model, path = nn.Linear(2, 2), tmp_path / "m.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 3):
        path.write_bytes(whole[:cut])
        # A cut inside the name of an object leaves the name of another one.
        refused(model, path, "not a readable checkpoint: damaged|pickled Python object")


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", b"version https://git-lfs", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_not_a_checkpoint_at_all(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"m{suffix}").write_bytes(content)
    message = refused(wrn(1), tmp_path / f"m{suffix}", "not a readable")
    assert "pickled Python object" not in message, "a damaged file is not accused of code"
    assert "weights_only" not in message, "no advice to load it unsafely"


@pytest.mark.parametrize(
    "content", [{}, [1, 2], torch.rand(3), {"epoch": 3}, {"state_dict": {"a": torch.rand(1), "n": 3}}]
)
def test_no_state_dict_inside(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "m.pt")
    refused(wrn(1), tmp_path / "m.pt", "holds no state dict; expected a mapping of names to tensors")


def test_numpy_scalars_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"state_dict": wrn(1).state_dict(), "clean_acc": np.float64(85.4)}, tmp_path / "m.pt")
    said = r"pickled Python object \(numpy\.\S*scalar\), which could run code, and is refused; .*its state_dict"
    refused(wrn(1), tmp_path / "m.pt", said)


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(wrn(1), tmp_path / "m.pt")
    refused(wrn(1), tmp_path / "m.pt", r"WideResNet\), which could run code")


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "nested"])
def test_malicious_pickles_run_nothing(tmp_path: Path, form: str) -> None:
    path, target = tmp_path / "m.pt", tmp_path / "owned"
    evil = Malicious(target)
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        content = {"state_dict": wrn(1).state_dict(), "epoch": evil} if form == "nested" else evil
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    refused(wrn(1), path, r"pickled Python object \(posix\.system\), which could run code, and is refused")
    assert not target.exists()
    with path.open("rb") as file:  # the file is armed: read without care, it does run
        torch.load(file, weights_only=False) if form != "pickle" else pickle.load(file)
    assert target.exists()


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_weights(wrn(1), path)
    script = f"""
        import resource
        from pathlib import Path
        from backdoor.checkpoint import save_weights
        from backdoor.models import WideResNet
        model = WideResNet(depth=16, widen=1, num_classes=10, mean=[0.5] * 3, std=[0.25] * 3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_weights(model, Path({str(path)!r}))
        except OSError as error:
            print("errno", error.errno)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "errno 27", done.stderr  # EFBIG
    assert os.listdir(tmp_path) == ["m.safetensors"]
    loaded = wrn(2)
    load_weights(loaded, path)
    assert identical(loaded, wrn(1))


def test_killed_while_writing_leaves_no_file_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    whole = tmp_path / "whole.safetensors"
    save_weights(wrn(1), whole)
    (tmp_path / "m.safetensors.tmp").write_bytes(whole.read_bytes()[:1000])  # what a kill would leave
    refused(wrn(1), path, "no such file")
    save_weights(wrn(1), path)
    assert load_file(path).keys() == load_file(whole).keys()
    assert not (tmp_path / "m.safetensors.tmp").exists()
