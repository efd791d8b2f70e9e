"""Whether a resume point is whole: known before a Trainer takes it up, where damage would end every later run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from backdoor.store.intact import Damaged

# What Lightning writes and reads back.
PARTS: dict[str, type] = {
    "state_dict": dict,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
}


def check_resume_point(path: Path, module: pl.LightningModule) -> None:
    """Read it, as plain tensors and values, and compare it with the module that is to go on from it.

    Raises:
        Exception: of any kind, for a file that is damaged or was not written by a fit of such a module.
    """
    with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
        broken = archive.testzip()
    if broken is not None:
        raise Damaged(f"{broken} in it is not what was written")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise Damaged(f"holds a {type(content).__name__}")
    for name, kind in PARTS.items():
        if not isinstance(content.get(name), kind):
            raise Damaged(f"{name} in it is missing or damaged")
    own = {name: (value.shape, value.dtype) for name, value in module.state_dict().items()}
    if {name: (value.shape, value.dtype) for name, value in content["state_dict"].items()} != own:
        raise Damaged("its weights are those of another module")
    shapes = {parameter.shape for parameter in module.parameters()}
    for one in content["optimizer_states"]:
        check_optimizer(one, shapes)
    rows = content["callbacks"].get("History", {}).get("rows")
    if not isinstance(rows, list) or not all({"stage", "epoch"} <= row.keys() for row in rows):
        raise Damaged("its history is damaged")


def check_optimizer(state: Any, shapes: set[torch.Size]) -> None:
    """Raises Damaged for what is no state of an optimiser, or one of parameters with other `shapes`."""
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping) or "param_groups" not in state:
        raise Damaged("its optimiser's state is damaged")
    for values in state["state"].values():
        for value in values.values():
            if isinstance(value, Tensor) and value.ndim and value.shape not in shapes:
                raise Damaged("its optimiser's state is of another module")
