"""Where a result was made, as far as it may change the result or its time."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import backdoor

PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "kornia",
    "scikit-learn",
    "numpy",
    "pillow",
    "safetensors",
    "wandb",
)


def environment() -> dict[str, Any]:
    """A JSON-able description of software and hardware.

    Returns:
        `backdoor`, `python`, `platform`, `packages` (name -> version), `device` (`cpu`, `cpu_count`,
        `threads`, `gpus`, `cuda`), and `git` (`commit`, `dirty`) if the code runs from a checkout.
        It holds no host or user name and no path, so that it can be published as it is.
    """
    record: dict[str, Any] = {
        "backdoor": backdoor.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": _versions(),
        "device": _device(),
    }
    commit = git_commit(Path(__file__).resolve().parent)
    return record | ({"git": commit} if commit else {})


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    # The package's own word also names the build (CPU or which CUDA).
    return found | {"torch": str(torch.__version__)}


def _device() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    record: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }
    return record | ({"cuda": torch.version.cuda} if gpus else {})


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def git_commit(folder: Path) -> dict[str, Any] | None:
    """`commit` and `dirty` (tracked files changed) of the checkout that has this module in `folder`."""
    # A site-packages folder may lie inside another project's checkout: only a tracked file proves ours.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)} if commit else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
