"""The one check of types and ranges: a config's values against the annotations of what its `_target_`s name.

Nothing is called. A node's kind is checked too: what stands where a model belongs must be a class of models, or a
function that says by its annotation that it returns one.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from hydra._internal.utils import _locate
from omegaconf import DictConfig, OmegaConf

from backdoor.checking.expectations import (
    Closed,
    Section,
    described,
    is_listing,
    is_mapping,
    is_section,
    made_by,
    members,
    noun,
    taken,
)
from backdoor.checking.ranges import LARGEST, Range
from backdoor.errors import UserError, suggest

Path = tuple[str | int, ...]
REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
LONGEST = 60  # characters of a value that a message shows

ABSENT = object()


@dataclass(frozen=True)
class Fault:
    """A value that does not fit.

    Attributes:
        path: its keys.
        expected: in words, or a whole sentence where `value` is not to be shown.
        value: what came.
    """

    path: Path
    expected: str
    value: Any = ABSENT


def check_types(cfg: DictConfig, schema: type[Section]) -> None:
    """Check a composed config.

    Args:
        schema: a dataclass whose fields are the config's keys; other keys are not looked at.

    Raises:
        UserError: the first value of another type or out of range, by the key that the user would set: where a value
            is a reference (`${attack.ratio}`), that of what it refers to.
    """
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if name in cfg and cfg._get_node(name) is not None:
            value = OmegaConf.select(cfg, name)
            value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            fault = next(faults(value, hint, (name,)), None)
        else:
            fault = next(absent(schema, name, (name,)), None)
        if fault is not None:
            path = origin(OmegaConf.to_container(cfg, resolve=False), fault.path)
            raise UserError(message(dataclasses.replace(fault, path=path)))


def message(fault: Fault) -> str:
    """The one line."""
    key = ".".join(map(str, fault.path))
    if fault.value is ABSENT:
        return f"{key}: {fault.expected}"
    quoted = "" if type(fault.value) is str or "a text" not in fault.expected else " (a number as text is '\"5\"')"
    return f"{key}={shown(fault.value)}: expected {fault.expected}{quoted}"


def shown(value: Any) -> str:
    """A value as it is written on the command line, shortened."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def origin(raw: Any, path: Path) -> Path:
    """Where the value at `path` is written, when nodes on the way may be references to others."""
    for _ in range(20):  # references to references
        node = raw
        for place, key in enumerate(path):
            node = node[int(key)] if isinstance(node, list) else node.get(key) if isinstance(node, dict) else None
            found = REFERENCE.fullmatch(node) if isinstance(node, str) else None
            if found:
                path = (*found[1].split("."), *path[place + 1 :])
                break
        else:
            return path
    return path


def faults(value: Any, hint: Any, path: Path) -> Iterator[Fault]:
    """What of `value`, plain or with nodes in it, does not fit an annotation; the first is enough."""
    if isinstance(value, dict) and "_target_" in value:
        yield from node_faults(value, hint, path)
        return
    found = [list(_faults(value, member, path)) for member in members(hint)]
    if all(found):
        inside = next((one for one in found if one[0].path != path), None)
        alone = found[0] if len(found) == 1 else [Fault(path, described(hint), value=value)]
        yield from inside or alone


def _faults(value: Any, hint: Any, path: Path) -> Iterator[Fault]:
    """The same for an annotation without alternatives, and no node."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        found = next(faults(value, inner[0], path), None)
        if found is not None and found.path != path:
            yield found
        elif found is not None or not all(mark.holds(value) for mark in inner[1:] if isinstance(mark, Range)):
            yield Fault(path, described(hint), value=value)
    elif kind is Any or kind is object or not (inspect.isclass(kind) or kind is Literal):
        yield from inside(value, path)
    elif isinstance(value, dict) and is_section(kind):
        yield from fields(value, kind, path)
    elif isinstance(value, dict) and is_mapping(kind):
        for key, one in value.items():
            yield from faults(one, inner[1] if inner else Any, (*path, key))
    elif isinstance(value, list) and is_listing(kind):
        yield from items(value, kind, inner, path)
    elif isinstance(value, dict) and not is_mapping(kind) and inspect.isclass(kind) and kind not in PLAIN:
        if value.get("enabled", True) is not False:  # a stage that is left out needs nothing else
            yield Fault(path, "has no _target_; is the name misspelt?")
    elif not fits(value, kind, inner):
        yield Fault(path, described(hint), value=value)


PLAIN = (bool, int, float, str, type(None))


def fits(value: Any, kind: Any, choices: tuple[Any, ...]) -> bool:
    """Whether a value without others in it is one of `kind`: strictly, but a whole number is a number too."""
    if kind is Literal:
        return any(type(value) is type(choice) and value == choice for choice in choices)
    if kind in (int, float) and type(value) is int:
        return abs(value) <= LARGEST
    if kind in PLAIN:
        return type(value) is kind and value == value  # no NaN
    if issubclass(kind, os.PathLike) or is_listing(kind):
        return issubclass(kind, os.PathLike) and isinstance(value, str)  # a text is no list of letters
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol without runtime_checkable
        return False


def items(value: list[Any], kind: Any, inner: tuple[Any, ...], path: Path) -> Iterator[Fault]:
    """Those of a list; of a tuple with a fixed length each has an annotation of its own."""
    fixed = kind is tuple and inner and inner[-1] is not Ellipsis
    if fixed and len(inner) != len(value):
        yield Fault(path, f"{len(inner)} values", value=value)
        return
    for number, one in enumerate(value):
        yield from faults(one, inner[number] if fixed else inner[0] if inner else Any, (*path, number))


def inside(value: Any, path: Path) -> Iterator[Fault]:
    """Those of the nodes in a value that may be anything."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from faults(one, Any, (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from faults(one, Any, (*path, number))


def fields(value: Mapping[Any, Any], schema: Any, path: Path) -> Iterator[Fault]:
    """Those of a mapping that has the fields of a dataclass; further keys are looked at only where it is `Closed`."""
    hints = get_type_hints(schema, include_extras=True)
    for key in value if issubclass(schema, Closed) else ():
        if key not in hints:
            yield Fault((*path, key), f"no such setting; {suggest(str(key), hints)}")
    for name, hint in hints.items():
        place = (*path, name)
        yield from faults(value[name], hint, place) if name in value else absent(schema, name, place)


def absent(schema: Any, name: str, path: Path) -> Iterator[Fault]:
    """A key that must be there."""
    if schema.__dataclass_fields__[name].default is dataclasses.MISSING:
        key = ".".join(map(str, path))
        yield Fault(path, f"required, and nothing was chosen; write {key}=VALUE")


def node_faults(node: dict[str, Any], hint: Any, path: Path) -> Iterator[Fault]:
    """Those of a mapping with `_target_`: of what it names, then of its arguments."""
    target, place = node["_target_"], (*path, "_target_")
    if not isinstance(target, str):
        yield Fault(place, "the dotted name of a class or a function", value=target)
        return
    try:
        called = _locate(target)
    except Exception:  # an import can raise anything; Hydra will say it
        return
    wrong = wrong_kind(called, hint, partial=bool(node.get("_partial_", False)))
    if wrong is not None:
        yield Fault(place, wrong, value=target)
        return
    known = taken(called)
    given = {str(name): value for name, value in node.items() if name not in RESERVED}
    positional = node.get("_args_") or []
    given |= dict(zip(known.positional, positional if isinstance(positional, list) else [], strict=False))
    for name, value in given.items():
        if name in known.hints or known.rest is not None:
            yield from faults(value, known.hints.get(name, known.rest), (*path, name))
        elif isinstance(value, dict) and "_target_" in value:  # Hydra would call it before it finds out
            yield Fault((*path, name), f"{noun(called)} has no such option")


RESERVED = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


def wrong_kind(called: Any, hint: Any, *, partial: bool) -> str | None:
    """What was expected where `called` is not of the kind that an annotation asks for; None if it is.

    Args:
        partial: it is not called yet, but handed on to be called later.
    """
    if not callable(called):
        return "a class or a function"
    wanted, made = members(hint), made_by(called)
    later = [get_args(one) for one in wanted if get_origin(one) is Callable_]
    if later and partial:
        wanted = tuple(one[-1] if one else Any for one in later)
    elif later and not inspect.isclass(made):
        return "_partial_: true beside it, for it is called later" if conforms(made, later[0][-1]) else None
    elif partial and not any(open_kind(one) for one in wanted):
        return "no _partial_ beside it, for what it makes is needed at once"
    if any(conforms(made, one) for one in wanted):
        return None
    names = " or ".join(noun(get_origin(one) or one) for one in wanted if one is not type(None))
    return f"a class of {names}, or a function that is annotated to return one"


Callable_ = get_origin(Callable[..., Any])


def open_kind(hint: Any) -> bool:
    """Whether an annotation says nothing about the kind."""
    kind = get_origin(hint) or hint
    return kind in (Any, object) or not inspect.isclass(kind)


def conforms(made: Any, hint: Any) -> bool:
    """Whether what a callable makes (`made_by`) is of the kind `hint`; of a protocol, whether it has its methods."""
    if open_kind(hint):
        return True
    made, kind = get_origin(made) or made, get_origin(hint) or hint
    if not inspect.isclass(made):
        return False
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(made, name) for name in vars(kind) if not name.startswith("_"))
    return issubclass(made, kind)
