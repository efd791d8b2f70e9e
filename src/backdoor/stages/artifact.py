"""A stage's outcome on disk: safetensors and JSON; what is loaded gives the logits that were evaluated, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from backdoor.checkpoint import load_weights, save_tensors, save_weights
from backdoor.context import RunContext
from backdoor.stages.base import Outcome
from backdoor.state import State
from backdoor.store import write_json

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
        {"history": outcome.history, "findings": values, "seconds": seconds, "tensors": sorted(tensors)},
    )


def load_outcome(state: State, folder: Path, context: RunContext, provides: frozenset[str]) -> tuple[Outcome, float]:
    """Read what `save_outcome` wrote, on top of the `state` that the stage started from.

    Returns:
        The outcome, and the seconds that the stage took when it ran.
    """
    record = json.loads((folder / "outcome.json").read_text())
    parts: dict[str, dict[str, Any]] = {part: dict(getattr(state, part)) for part in PARTS}
    parts["findings"].update(record["findings"])
    if record["tensors"]:
        try:
            tensors = load_file(folder / "tensors.safetensors")
        except SafetensorError as error:
            raise ValueError(f"{folder.name}: {error}") from None
        for name in record["tensors"]:
            part, _, key = name.partition(".")
            outer, nested, inner = key.partition("/")
            if nested:
                parts[part].setdefault(outer, {})[inner] = tensors[name]
            else:
                parts[part][key] = tensors[name]
    model = state.model
    if "model" in provides:
        model = context.make_model()
        load_weights(model, folder / "model.safetensors", setting="store.dir")
        model = context.place(model)
        model.eval()
    loaded = replace(state, model=model, scores=parts["scores"], groups=parts["groups"], findings=parts["findings"])
    return Outcome(loaded, record["history"]), float(record["seconds"])
