"""A stage's outcome on disk: safetensors and JSON; what is loaded gives the logits that were evaluated, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from backdoor.stages.base import Outcome
from backdoor.stages.collapse import is_collapse
from backdoor.state import State
from backdoor.store.store import write_json
from backdoor.store.weights import load_weights, save_tensors, save_weights
from backdoor.training.context import RunContext

PARTS = ("scores", "groups", "findings")


def save_outcome(outcome: Outcome, provides: frozenset[str], folder: Path, *, seconds: float) -> None:
    """Write what the stage provides into `folder`.

    Findings are tensors, mappings of names to tensors (a network's weights), or values that JSON can hold.
    """
    state = outcome.state
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for part in PARTS:
        for name, value in getattr(state, part).items():
            if name not in provides:
                continue
            if isinstance(value, Tensor):
                check_rows(part, name, value, len(state.train))
                tensors[f"{part}.{name}"] = value.detach().cpu().contiguous()
            elif isinstance(value, Mapping) and value and all(isinstance(one, Tensor) for one in value.values()):
                for key, one in value.items():
                    tensors[f"{part}.{name}/{key}"] = one.detach().cpu().contiguous().clone()
            else:
                values[name] = value
    if "model" in provides and state.model is not None:
        save_weights(state.model, folder / "model.safetensors")
    if tensors:
        save_tensors(tensors, folder / "tensors.safetensors")
    write_json(
        folder / "outcome.json",
        {
            "history": outcome.history,
            "findings": values,
            "seconds": seconds,
            "tensors": sorted(tensors),
            **({"collapse": outcome.collapse} if outcome.collapse else {}),
        },
    )


def load_outcome(
    state: State,
    folder: Path,
    context: RunContext,
    provides: frozenset[str],
    network: Callable[[Path], nn.Module] | None = None,
) -> tuple[Outcome, float]:
    """Read what `save_outcome` wrote, on top of the `state` that the stage started from.

    Args:
        network: makes the model for a file of weights; the run's own if None.

    Returns:
        The outcome, and the seconds that the stage took when it ran.

    Raises:
        ValueError, TypeError, KeyError, RecursionError, OSError, UserError: files that are not what was written.
    """
    record = checked_record(json.loads((folder / "outcome.json").read_text()))
    parts: dict[str, dict[str, Any]] = {part: dict(getattr(state, part)) for part in PARTS}
    parts["findings"].update(record["findings"])
    for name, tensor in read_parts(folder, record["tensors"]).items():
        part, _, key = name.partition(".")
        outer, nested, inner = key.partition("/")
        if nested:
            parts[part].setdefault(outer, {})[inner] = tensor
        else:
            check_rows(part, key, tensor, len(state.train))
            parts[part][key] = tensor
    model = state.model
    if "model" in provides:
        model = context.make_model() if network is None else network(folder / "model.safetensors")
        load_weights(model, folder / "model.safetensors", setting="store.dir")
        model = context.place(model)
        model.eval()
    loaded = replace(state, model=model, scores=parts["scores"], groups=parts["groups"], findings=parts["findings"])
    return Outcome(loaded, record["history"], record.get("collapse")), float(record["seconds"])


def checked_record(record: Any) -> dict[str, Any]:
    """The content of outcome.json, as `save_outcome` writes it; raises ValueError for another one."""
    kinds: dict[str, Any] = {"history": list, "findings": dict, "seconds": (int, float), "tensors": list}
    if not isinstance(record, dict):
        raise ValueError("outcome.json: expected a mapping")
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"outcome.json: {name} is missing or damaged")
    if not all(isinstance(row, dict) and {"stage", "epoch"} <= row.keys() for row in record["history"]):
        raise ValueError("outcome.json: history is damaged")
    if not is_collapse(record.get("collapse")):
        raise ValueError("outcome.json: collapse is damaged")
    return record


def read_parts(folder: Path, names: Sequence[Any]) -> dict[str, Tensor]:
    """`part.name` or `part.name/key` -> tensor; raises ValueError unless the file holds just these."""
    if not names:
        return {}
    try:
        tensors = load_file(folder / "tensors.safetensors")
    except SafetensorError as error:
        raise ValueError(f"tensors.safetensors: {error}") from None
    if sorted(map(str, names)) != sorted(tensors) or any(name.partition(".")[0] not in PARTS for name in tensors):
        raise ValueError("tensors.safetensors: holds other names than outcome.json")
    # Copies: what was loaded is a map of the file, which would end this process if the file were cut off meanwhile.
    return {str(name): tensors[name].clone() for name in names}


def check_rows(part: str, name: str, tensor: Tensor, rows: int) -> None:
    """Raises UserError for scores that are not float (N,), or groups that are not bool (N,)."""
    if part == "findings":
        return
    right = tensor.is_floating_point() if part == "scores" else tensor.dtype == torch.bool
    if not right or tensor.shape != (rows,):
        raise ValueError(
            f"{part}.{name}: expected a value for each of {rows} rows, got {tensor.dtype} {tuple(tensor.shape)}"
        )
