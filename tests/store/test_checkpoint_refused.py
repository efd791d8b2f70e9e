"""Checkpoints that are refused: another network, damage, and anything that could run code."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backdoor.models import small_cnn
from backdoor.store.weights import load_weights, read_tensors, save_weights
from helpers.checkpoint import identical, official_abl, refused, wrn


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


def test_another_number_of_classes_asks_for_the_data(tmp_path: Path) -> None:
    torch.save(official_abl(wrn(1, classes=43)), tmp_path / "m.pt")
    message = refused(wrn(1), tmp_path / "m.pt", "the checkpoint has 43 classes and the data 10; .*data=")
    assert " model=" not in message


def test_a_wider_network_is_another_architecture_whatever_its_classes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
    save_weights(small_cnn(num_classes=43, width=8, **options), tmp_path / "m.safetensors")
    message = refused(
        small_cnn(num_classes=10, width=4, **options), tmp_path / "m.safetensors", "expected shape .*model="
    )
    assert "classes" not in message


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (float("-inf"), "Inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_none(tmp_path: Path, value: float, said: str, suffix: str, dtype: torch.dtype) -> None:
    path, model = tmp_path / f"m{suffix}", wrn(1).to(dtype)
    for name in ("backbone.bn.running_var", "head.bias"):
        model.state_dict()[name][3] = value
    if suffix == ".pt":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        save_weights(model, path)
    refused(wrn(2), path, rf"holds {said} in backbone\.bn\.running_var: .*lower lr")


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
    "content", [{}, [1, 2], torch.rand(3), {"epoch": 3}, {"state_dict": {"a": torch.rand(1), "n": [3]}}]
)
def test_no_state_dict_inside(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "m.pt")
    refused(wrn(1), tmp_path / "m.pt", "holds no state dict; expected a mapping of names to tensors")


@pytest.mark.parametrize("value", [np.str_("a"), np.ones(3), np.datetime64("2020-01-01"), np.zeros((), "i4,f4")[()]])
def test_of_numpy_only_numbers_are_read(tmp_path: Path, value: Any) -> None:
    torch.save({"state_dict": wrn(1).state_dict(), "extra": value}, tmp_path / "m.pt")
    refused(wrn(1), tmp_path / "m.pt", "not a readable checkpoint|pickled Python object")


class ForgedNumber:
    """A float64 whose dtype claims, by its flags, that its 8 bytes are the address of an object."""

    def __reduce__(self) -> Any:
        return np.float64(0).__reduce__()[0], (ForgedDtype(), b"A" * 8)


class ForgedDtype:
    def __reduce__(self) -> Any:
        return np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 0xFF)


def test_flags_of_a_dtype_in_a_file_have_no_effect(tmp_path: Path) -> None:
    saved, loaded = wrn(1), wrn(2)
    torch.save({"state_dict": saved.state_dict(), "acc": ForgedNumber()}, tmp_path / "m.pt")
    assert type(read_tensors(tmp_path / "m.pt", "x")) is dict
    load_weights(loaded, tmp_path / "m.pt")
    assert identical(saved, loaded)
    with pytest.raises(pickle.UnpicklingError):  # the permission ends with the load
        torch.load(tmp_path / "m.pt", weights_only=True)


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
        nested = {"state_dict": wrn(1).state_dict(), "best": np.float64(85.4), "epoch": evil}
        content = nested if form == "nested" else evil
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    refused(wrn(1), path, r"pickled Python object \(posix\.system\), which could run code, and is refused")
    assert not target.exists()
    with path.open("rb") as file:  # the file is armed: read without care, it does run
        torch.load(file, weights_only=False) if form != "pickle" else pickle.load(file)
    assert target.exists()
