"""What may change an artifact's last digits and is no part of its key: recorded beside it, told where it differs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from backdoor import __version__
from backdoor.training.context import Hardware

# What computes; the others that a run has are in its environment.json.
PACKAGES = ("torchvision", "pytorch-lightning", "kornia", "numpy", "scikit-learn")


def made_with(hardware: Hardware) -> dict[str, Any]:
    """Threads, kind of CPU or name of the GPU, and versions; JSON-able."""
    gpu = hardware.device.type == "cuda"
    device = torch.cuda.get_device_name(hardware.device) if gpu else torch.backends.cpu.get_cpu_capability()
    return {"threads": torch.get_num_threads(), "device": device, **versions()}


@cache
def versions() -> dict[str, str]:
    """Name -> version of this package and those that compute."""
    found = {"backdoor": __version__, "torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def differing(made: Any, here: Mapping[str, Any]) -> dict[str, Any]:
    """What an artifact was `made` with, as far as that differs from what is `here`; null where it is not known."""
    known = made if isinstance(made, Mapping) else {}
    return {name: known.get(name) for name, value in here.items() if known.get(name) != value}
