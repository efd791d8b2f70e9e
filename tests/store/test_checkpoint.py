"""Checkpoints: what is written comes back bit for bit, and a full disk or a kill leaves nothing half-made."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from backdoor.stages.artifact import save_outcome
from backdoor.stages.base import Outcome
from backdoor.state import Split, State
from backdoor.store.npz import save_npz
from backdoor.store.weights import load_weights, save_weights
from helpers.checkpoint import identical, refused, wrn


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
    saved[0].bias.data = torch.tensor([torch.finfo(torch.float32).max, -0.0, 1e-45])  # type: ignore[index]
    save_weights(saved, tmp_path / "m.safetensors")
    load_weights(loaded, tmp_path / "m.safetensors")
    for name, value in saved.state_dict().items():
        assert torch.equal(value.view(torch.int32), loaded.state_dict()[name].view(torch.int32))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path: Path, umask: int, mode: int) -> None:
    model, split = wrn(1), Split.of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).long())
    outcome = Outcome(State(split, 2, model=model, scores={"loss": torch.zeros(2)}), [])
    before = os.umask(umask)
    try:
        save_weights(model, tmp_path / "weights.safetensors")
        save_npz(tmp_path / "rows.npz", rows=np.arange(2))
        save_outcome(outcome, frozenset({"model", "loss"}), tmp_path, seconds=1.0)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    names = ["weights.safetensors", "rows.npz", "model.safetensors", "tensors.safetensors", "outcome.json"]
    assert modes == dict.fromkeys(names, mode)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_weights(wrn(1), path)
    script = f"""
        import resource
        from pathlib import Path
        from backdoor.store.weights import save_weights
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
