"""Weights on disk: safetensors out; safetensors or plain tensors in, and nothing that could run code."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backdoor.errors import UserError
from backdoor.store.numpy_scalars import numbers_allowed

NESTED = ("state_dict", "model_state_dict", "model", "net")
WRAPPERS = re.compile(r"^(?:module\.|model\.)")
BESIDE = (bool, int, float, complex, str, type(None), np.generic)  # an epoch, an accuracy, a name: not the weights
PREPROCESS = "preprocess."  # of the tensors of what cleans a model's input
OPTIONAL = ("mean", "std")  # foreign checkpoints normalise outside the model


def save_weights(module: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write all parameters and buffers as safetensors, atomically: `path` is whole or untouched.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    seen: set[tuple[int, int]] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        place = (value.data_ptr(), value.numel())
        shared = value.numel() > 0 and place in seen
        # safetensors refuses shared memory; a copy of a tied weight loads back the same.
        plain = value.detach().cpu().contiguous()
        tensors[uncompiled(name)] = plain.clone() if shared else plain
        seen.add(place)
    save_tensors(tensors, path, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous CPU tensors that share no memory as safetensors, atomically, with the umask's file mode.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = temporary.stat().st_mode  # safetensors writes mode 0600, which locks others out of a shared store
    try:
        save_file(dict(tensors), temporary, metadata=dict(metadata or {}))
        temporary.chmod(mode)
        os.replace(temporary, path)
    except SafetensorError as error:
        # The command line knows a full disk by its errno, which safetensors gives in words alone.
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else 0, str(error), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(module: nn.Module, path: Path, *, setting: str = "attack.model") -> None:
    """Load a checkpoint into `module`, in place, strictly.

    Reads .safetensors, and anything else with `torch.load(weights_only=True)`. A state dict may be nested
    under `state_dict`, `model_state_dict`, `model` or `net` (an epoch or optimizer may lie beside it; single
    numbers and texts may lie beside the tensors too),
    carry wrappers' prefixes such as `module.`, and use the names of well-known other code
    (`ImageClassifier.foreign_keys`). Missing `mean`, `std` and `num_batches_tracked` keep the module's own: a
    checkpoint trained without normalisation needs data.mean of 0 and data.std of 1. The module may be compiled.

    Raises:
        UserError: no such file, not plain tensors, another architecture (the first differing keys are named),
            another number of classes, or NaN or Inf. The module is then as it was.
    """
    tensors = read_tensors(path, setting)
    own = {uncompiled(name): value for name, value in module.state_dict().items()}
    renamed = rename(tensors, own, getattr(module, "foreign_keys", ()))
    for name, value in own.items():
        if name in OPTIONAL or name.endswith("num_batches_tracked"):
            renamed.setdefault(name, value)
    model = type(getattr(module, "_orig_mod", module)).__name__
    check_architecture(own, renamed, f"{setting}={path}", model)
    check_finite(tensors, f"{setting}={path}")
    module.load_state_dict({name: renamed[uncompiled(name)] for name in module.state_dict()})


def uncompiled(name: str) -> str:
    """A parameter's name without what `torch.compile` puts before the part that it wraps."""
    return name.replace("_orig_mod.", "")


def has_preprocess(path: Path, *, setting: str) -> bool:
    """Whether the .safetensors file holds a model with an `ImageClassifier.preprocess`; raises as `load_weights`."""
    try:
        with safe_open(path, framework="pt") as file:
            return any(name.startswith(PREPROCESS) for name in file.keys())  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{setting}={path}: not a readable safetensors file ({one_line(error)})") from None


def check_architecture(own: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str, model: str) -> None:
    """Raise the UserError that says how the checkpoint differs from the model, if it does."""
    classes = other_classes(own, given)
    if classes:
        raise UserError(
            f"{source}: the checkpoint has {classes[1]} classes and the data {classes[0]}; choose the data= that it "
            "was trained on"
        )
    cleans = [name for name in given if name.startswith(PREPROCESS) and name not in own]
    if cleans:
        raise UserError(
            f"{source}: holds a model that a defense gave a module for its input ({', '.join(cleans[:3])}), without "
            "which it is another one; run that defense again to measure it, or choose the weights of an earlier stage"
        )
    problems = mismatches(own, given)
    if problems:
        raise UserError(
            f"{source}: holds another architecture than the chosen model= ({model}): "
            f"{'; '.join(problems)}; choose the model= that it was trained with"
        )


def other_classes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(the model's, the checkpoint's) numbers of classes, if they are all that differs."""
    if own.keys() != given.keys():
        return None
    found = set()
    for name, value in own.items():
        ours, theirs = value.shape, given[name].shape
        if ours == theirs:
            continue
        if not name.startswith("head.") or len(ours) != len(theirs) or ours[1:] != theirs[1:]:
            return None
        found.add((ours[0], theirs[0]))
    return found.pop() if len(found) == 1 else None


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError that names the first tensor with NaN or Inf."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            found = "NaN" if value.isnan().any() else "Inf"
            raise UserError(
                f"{source}: holds {found} in {name}: its training has diverged; choose a checkpoint from before, "
                "or train again with a lower lr"
            )


def read_tensors(path: Path, setting: str) -> dict[str, Tensor]:
    """name -> tensor of a checkpoint file."""
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file; expected a checkpoint (.safetensors, .pt, .pth, .ckpt)")
    if path.suffix == ".safetensors":
        try:
            return dict(sorted(load_file(path).items()))  # the file's own order is by dtype
        except (SafetensorError, OSError) as error:
            raise UserError(f"{setting}={path}: not a readable safetensors file ({one_line(error)})") from None
    try:
        with numbers_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes end the unpickler in a dozen ways
        raise UserError(f"{setting}={path}: {refusal(error)}") from None
    return find_state_dict(content, path, setting)


def refusal(error: Exception) -> str:
    """Why `torch.load(weights_only=True)` refused: an object that is not plain tensors, or damage."""
    named = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error))
    if named is None:
        # The unpickler's own text is advice on how to load unsafely.
        detail = "" if isinstance(error, pickle.UnpicklingError) else f" ({one_line(error)})"
        return f"not a readable checkpoint: damaged, or not a file of plain tensors{detail}"
    return (
        f"holds a pickled Python object ({named[1]}), which could run code, and is refused; expected plain "
        "tensors: where you trust the file, save its state_dict() alone, as safetensors or with torch.save"
    )


def one_line(error: Exception) -> str:
    """The first line of an error's text (its type, if it has none), at most 100 characters."""
    return next(iter(str(error).splitlines()), "")[:100] or type(error).__name__


def find_state_dict(content: Any, path: Path, setting: str) -> dict[str, Tensor]:
    """The mapping of names to tensors inside a loaded file."""
    if isinstance(content, Mapping):
        for name in NESTED:
            if isinstance(content.get(name), Mapping):
                return find_state_dict(content[name], path, setting)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        beside = [value for value in content.values() if isinstance(value, BESIDE)]
        if tensors and len(tensors) + len(beside) == len(content):
            return tensors
    raise UserError(
        f"{setting}={path}: holds no state dict; expected a mapping of names to tensors, or one under "
        f"{', '.join(NESTED)}; got {describe(content)}"
    )


def describe(content: Any) -> str:
    """A loaded object in a few words: its type and first keys."""
    keys = [str(key) for key in content][:5] if isinstance(content, Mapping) else []
    return f"{type(content).__name__}" + (f" with keys {', '.join(keys)}" if keys else "")


def rename(tensors: Mapping[str, Tensor], own: Iterable[str], foreign: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Names without wrappers' prefixes, and in our spelling if they are not yet."""
    names, known = [uncompiled(name) for name in tensors], set(own) - set(OPTIONAL)
    while names and not known & set(names):
        prefixes = {found[0] if (found := WRAPPERS.match(name)) else "" for name in names}
        if len(prefixes) > 1 or "" in prefixes:
            break
        names = [WRAPPERS.sub("", name) for name in names]
    if not known & set(names):
        for pattern, replacement in foreign:
            names = [re.sub(pattern, replacement, name) for name in names]
    if len(set(names)) < len(names):  # two names became one: keep them as they came, for the message
        return dict(tensors)
    return dict(zip(names, tensors.values(), strict=True))


def mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What differs, in a few words each, in the order of the layers."""
    problems = []
    for what, left, right in (("missing", own, given), ("unexpected", given, own)):
        names = [name for name in left if name not in right]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{what} {', '.join(names[:3])}{more}")
    if not problems:
        for name, value in own.items():
            if value.shape != given[name].shape:
                expected, got = tuple(value.shape), tuple(given[name].shape)
                problems.append(f"{name}: expected shape {expected}, got {got}")
                break
    return problems
