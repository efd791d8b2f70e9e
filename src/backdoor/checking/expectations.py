"""Annotations read for a check: what a callable takes and makes, and how to say what an annotation allows."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin, get_type_hints, is_typeddict

from backdoor.checking.ranges import Range

NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
}


class Section:
    """Base of dataclasses whose fields are the keys of a mapping without `_target_`."""


class Closed(Section):
    """A section without further keys."""


@dataclass(frozen=True)
class PassedTo:
    """Marks `**settings: Annotated[Any, PassedTo(Search)]`: they are the arguments of another callable."""

    called: Callable[..., Any]


@dataclass(frozen=True)
class Taken:
    """The arguments of a callable.

    Attributes:
        hints: annotation of each argument; Any where there is none that can be read.
        positional: names of those that may be given without one, in order.
        rest: annotation of further keyword arguments; None: it takes no others.
    """

    hints: dict[str, Any]
    positional: tuple[str, ...]
    rest: Any


@cache
def taken(called: Any) -> Taken:
    """What `called` takes; a class's `**rest` is what the next class of its bases takes."""
    owners = inspect.getmro(called) if inspect.isclass(called) else (called,)
    hints: dict[str, Any] = {}
    positional: list[str] = []
    rest: Any = None
    for owner in owners:
        function = owner.__dict__.get("__init__") if inspect.isclass(called) else owner
        if function is None or owner is object:
            continue
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (ValueError, TypeError):  # some of C's functions tell nothing
            return Taken(hints, tuple(positional), Any)
        found = hints_of(owner if dataclasses.is_dataclass(owner) and generated(function) else function, parameters)
        parameters = parameters[1:] if inspect.isclass(called) else parameters
        hints = {one.name: found[one.name] for one in parameters if one.kind not in VARIABLE} | hints
        positional = positional or [one.name for one in parameters if one.kind in POSITIONAL]
        rest = next((found[one.name] for one in parameters if one.kind is inspect.Parameter.VAR_KEYWORD), None)
        passed = next((one for one in getattr(rest, "__metadata__", ()) if isinstance(one, PassedTo)), None)
        if passed is not None:
            other = taken(passed.called)
            return Taken(other.hints | hints, tuple(positional), other.rest)
        if rest is None:
            break
    return Taken(hints, tuple(positional), rest)


VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def generated(function: Any) -> bool:
    """Whether `__init__` was written by `dataclass`: then its annotations belong to several modules."""
    return not hasattr(function, "__wrapped__") and function.__code__.co_filename == "<string>"


def hints_of(owner: Any, parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """The parameters' annotations; Any where one cannot be read (a name imported for type checkers alone)."""
    found = read_hints(owner, {one.name: one.annotation for one in parameters})
    for one in parameters:
        if one.default is None:
            found[one.name] = Optional[found[one.name]]  # noqa: UP045 - known only now
    return found


def read_hints(owner: Any, annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Annotations, texts resolved in the owner's module; Any for one that is missing or cannot be resolved."""
    if inspect.isclass(owner):
        with_bases: dict[str, Any] = {}
        for base in reversed(owner.__mro__):
            own = {name: value for name, value in inspect.get_annotations(base).items() if name in annotations}
            with_bases |= read_hints(SimpleNamespace(__globals__=vars(sys.modules.get(base.__module__, sys))), own)
        return {name: with_bases.get(name, Any) for name in annotations}
    names: dict[str, Any] = getattr(inspect.unwrap(owner), "__globals__", {})
    found: dict[str, Any] = {}
    for name, annotation in annotations.items():
        found[name] = Any
        if annotation is not inspect.Parameter.empty:
            try:
                shim = SimpleNamespace(__annotations__={name: annotation})
                found[name] = get_type_hints(shim, globalns=names, include_extras=True)[name]
            except Exception:  # whatever evaluating somebody's text raises
                continue
    return found


def made_by(called: Any) -> Any:
    """What a call gives: a class, or the annotation of a function's result; None where nothing says it."""
    if inspect.isclass(called):
        return called
    try:
        annotation = inspect.signature(called).return_annotation
    except (ValueError, TypeError):
        return None
    made = read_hints(called, {"return": annotation})["return"]
    return None if made is Any else made


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation, one where it is no union."""
    hint = getattr(hint, "__value__", hint)  # `type X = ...`
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for one in get_args(hint) for member in members(one))
    return (hint,)


def described(hint: Any) -> str:
    """What an annotation allows, in words."""
    allowed = members(hint)
    words = dict.fromkeys(_described(one) for one in allowed if not (one is int and float in allowed))
    return ", or ".join(words)


def _described(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return described(inner[0]) + "".join(str(mark) for mark in inner[1:] if isinstance(mark, Range))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if hint in NAMES:
        return NAMES[hint]
    kind = origin or hint
    if is_mapping(kind) or is_section(kind):
        return "a mapping"
    if is_listing(kind):
        return f"a list, each of which is {described(inner[0])}" if inner and inner[0] is not Any else "a list"
    return f"one of {noun(kind)} (a mapping with _target_)"


def noun(kind: Any) -> str:
    """The name of a class."""
    return str(getattr(kind, "__name__", kind))


def is_section(kind: Any) -> bool:
    """Whether it describes a mapping key by key."""
    return inspect.isclass(kind) and issubclass(kind, Section)


def is_mapping(kind: Any) -> bool:
    """Whether it is a class of mappings."""
    return inspect.isclass(kind) and (issubclass(kind, Mapping) or is_typeddict(kind))


def is_listing(kind: Any) -> bool:
    """Whether it is a class that a list is one of, or is turned into."""
    from_abc = inspect.isclass(kind) and kind.__module__ in ("builtins", "collections.abc")
    return from_abc and issubclass(kind, Iterable) and not issubclass(kind, str | bytes | Mapping)
