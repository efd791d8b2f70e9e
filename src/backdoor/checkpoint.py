"""Weights on disk: safetensors out; safetensors or plain tensors in, and nothing that could run code."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backdoor.errors import UserError

NESTED = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")
OPTIONAL = ("mean", "std")  # foreign checkpoints normalise outside the model


def save_weights(module: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write all parameters and buffers as safetensors, atomically."""
    seen: dict[tuple[int, int], str] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        place = (value.data_ptr(), value.numel())
        shared = value.numel() > 0 and place in seen
        # safetensors refuses shared memory; a copy of a tied weight loads back the same.
        tensors[name] = value.detach().cpu().contiguous().clone() if shared else value.detach().cpu().contiguous()
        seen[place] = name
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata=dict(metadata or {}))
    os.replace(temporary, path)


def load_weights(module: nn.Module, path: Path, *, setting: str = "attack.model") -> None:
    """Load a checkpoint into `module`, in place, strictly.

    Reads .safetensors, and .pt, .pth, .ckpt or .tar with `torch.load(weights_only=True)`. A state dict may be nested under
    `state_dict`, `model_state_dict`, `model` or `net`, carry a `module.` prefix, and use the names of well-known other code
    (`ImageClassifier.foreign_keys`). Missing `mean` and `std` keep the module's own.

    Raises:
        UserError: no such file, not plain tensors, or another architecture (the first differing keys are named).
    """
    tensors = read_tensors(path, setting)
    own = module.state_dict()
    renamed = rename(tensors, own, getattr(module, "foreign_keys", ()))
    for name in OPTIONAL:
        if name in own:
            renamed.setdefault(name, own[name])
    problems = mismatches(own, renamed)
    if problems:
        raise UserError(
            f"{setting}={path}: holds another architecture than model={type(module).__name__}: "
            f"{'; '.join(problems)}; choose the model= that it was trained with"
        )
    module.load_state_dict({name: renamed[name] for name in own})


def read_tensors(path: Path, setting: str) -> dict[str, Tensor]:
    """name -> tensor of a checkpoint file."""
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file; expected a checkpoint (.safetensors, .pt, .pth, .ckpt)")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{setting}={path}: not a readable safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{setting}={path}: holds pickled Python objects, which could run code, and is refused; expected plain "
            "tensors: save its state_dict() as safetensors where you trust it"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{setting}={path}: not a readable checkpoint ({str(error).splitlines()[0]})") from None
    return find_state_dict(content, path, setting)


def find_state_dict(content: Any, path: Path, setting: str) -> dict[str, Tensor]:
    """The mapping of names to tensors inside a loaded file."""
    if isinstance(content, Mapping):
        for name in NESTED:
            if isinstance(content.get(name), Mapping):
                return find_state_dict(content[name], path, setting)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(content):
            return tensors
    raise UserError(f"{setting}={path}: holds no state dict; expected a mapping of names to tensors")


def rename(
    tensors: Mapping[str, Tensor], own: Iterable[str], foreign: Iterable[tuple[str, Any]]
) -> dict[str, Tensor]:
    """Names without wrappers' prefixes, and in our spelling if they are not yet."""
    names, known = list(tensors), set(own)
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            names = [name.removeprefix(prefix) for name in names]
    if not known & set(names) - set(OPTIONAL):
        for pattern, replacement in foreign:
            names = [re.sub(pattern, replacement, name) for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What differs, in a few words each."""
    problems = []
    for what, names in (("missing", own.keys() - given.keys()), ("unexpected", given.keys() - own.keys())):
        if names:
            first = sorted(names)[:3]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{what} {', '.join(first)}{more}")
    if not problems:
        for name, value in own.items():
            if value.shape != given[name].shape:
                expected, got = tuple(value.shape), tuple(given[name].shape)
                problems.append(f"{name}: expected shape {expected}, got {got}")
                break
    return problems
