"""A digest of the Python source that computes something, for keys: an edited loss never gets yesterday's weights.

Counted are the bytes of the modules that a config's `_target_`s name and of all that these import, in functions too,
as far as it is this package, the package of such a `_target_` (a plug-in's), or lies in no site-packages (a user's own
modules). What else is installed changes with its version, which is recorded beside each artifact. No module is
imported, and torch neither: plans and sweeps ask before anything runs.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OWN = "backdoor"
# Around every stage: what hands it its state, its seed and its trainer.
ROOTS = frozenset({"backdoor.stages.pipeline", "backdoor.training.context"})
# They set seeds and facts. What else they do shows in the content that they hand on, so their imports do not count.
GLUE = frozenset(f"{OWN}.experiment.{name}" for name in ("preparation", "build", "attacker"))  # split: see `imports`
# Draws and prints what was computed: stages hand it numbers and take none back.
REPORTING = frozenset(f"{OWN}.{name}" for name in ("report", "loggers", "figures"))
# Too large to be read for each run, seldom edited, and their versions are recorded.
INSTALLED = frozenset(
    {"torch", "torchvision", "pytorch_lightning", "lightning", "torchmetrics", "kornia", "hydra", "omegaconf", "wandb"}
    | {"numpy", "scipy", "sklearn", "PIL", "matplotlib", "safetensors", "rich", "yaml", "ray", "submitit", "joblib"}
)
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def source_digest(value: Any, *, whole: str | None = None) -> str:
    """Hex digest (20 digits) of the source of a stage.

    Args:
        value: a plain config; each string in it that is the dotted name of something in a module counts.
        whole: instead of what is around a stage, this module and all that it imports, reporting too.
    """
    names = frozenset(filter(None, map(module_of, sorted(set(dotted_in(value))))))
    return _digest(names, whole)


@cache
def _digest(names: frozenset[str], whole: str | None) -> str:
    modules = closure(names | {whole}, skip=frozenset()) if whole else closure(names | ROOTS, skip=REPORTING) | GLUE
    state = hashlib.blake2b(digest_size=10)
    for name in sorted(modules):
        content = read(name)
        state.update(f"{name} {len(content)}\n".encode() + content)
    return state.hexdigest()


def dotted_in(value: Any) -> Iterator[str]:
    """All strings of a plain config that look like the name of something in a module."""
    if isinstance(value, str):
        if DOTTED.fullmatch(value):
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from dotted_in(one)
    elif isinstance(value, Sequence):
        for one in value:
            yield from dotted_in(one)


@cache
def module_of(name: str) -> str | None:
    """The module that `package.module.Class.method` is in; None where there is none, or none that counts."""
    parts = name.split(".")
    if parts[0] in INSTALLED or parts[0] in sys.stdlib_module_names:
        return None
    return next((found for end in range(len(parts), 0, -1) if locate(found := ".".join(parts[:end]))), None)


def closure(names: frozenset[str], *, skip: frozenset[str]) -> frozenset[str]:
    """The modules and all that they import, as far as that counts; `skip`: packages that do not."""
    tops = {OWN, *(name.partition(".")[0] for name in names)}
    found, open_ = set[str](), set(names)
    while open_:
        name = open_.pop()
        found.add(name)
        for one in imports(name):
            top = one.partition(".")[0]
            skipped = ".".join(one.split(".")[:2]) in skip
            if one not in found and not skipped and (top in tops or is_users(top)) and locate(one):
                open_.add(one)
    return frozenset(found)


@cache
def is_users(top: str) -> bool:
    """Whether a package is neither Python's, nor one of `INSTALLED`, nor in a site-packages folder."""
    if top in INSTALLED or top in sys.stdlib_module_names:
        return False
    return bool(places(top)) and not any({"site-packages", "dist-packages"} & set(path.parts) for path in places(top))


@cache
def places(top: str) -> tuple[Path, ...]:
    """The folders of a package, or the file of a module that is none."""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is not None:
        return tuple(map(Path, spec.submodule_search_locations))
    return (Path(spec.origin),) if spec.origin and spec.origin.endswith(".py") else ()


@cache
def locate(name: str) -> Path | None:
    """The file of a module, found by its name alone."""
    top, *rest = name.split(".")
    for place in places(top):
        folder = place.joinpath(*rest)
        paths = [folder / "__init__.py", *([folder.with_name(f"{folder.name}.py")] if rest else [place])]
        for path in paths:
            if path.is_file():
                return path
    return None


@cache
def read(name: str) -> bytes:
    """A module's source, as it was when this process first asked; empty if there is none."""
    path = locate(name)
    return b"" if path is None else path.read_bytes()


@cache
def imports(name: str) -> frozenset[str]:
    """Names that may be modules which a module imports anywhere in it, their packages, and its own."""
    try:
        tree = ast.parse(read(name))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it cannot be run either
        return frozenset()
    path = locate(name)
    package = name if path is not None and path.name == "__init__.py" else name.rpartition(".")[0]
    found = {name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
            found.add(node.value)  # a `_target_`, or the name of a module to import
    parts = [one.split(".") for one in found if one]
    return frozenset(".".join(one[:end]) for one in parts for end in range(1, len(one) + 1))
