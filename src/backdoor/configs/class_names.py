"""Classes by name: `attack.target='Stop sign'` becomes its number before anything else reads the config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from backdoor.errors import UserError
from backdoor.store.store import store_root

HOLDS_CLASSES = ("target", "sources")  # keys of an attack, its groups and their label maps
ELSEWHERE = ("stages", "trigger")
SHOWN = 10  # names in a message


def number_classes(cfg: DictConfig) -> None:
    """Put class numbers in the place of class names, in `cfg` itself; upper and lower case are the same.

    Only a name makes the data's classes be looked up; those of a tree of folders are its folders' names.

    Raises:
        UserError: a name that no class has.
    """
    given = [one for one in classes_in(OmegaConf.select(cfg, "attack"), "attack") if isinstance(one[-1], str)]
    if not given:
        return
    from backdoor.checking.types import check_types  # these want torch, without which plans and --help answer
    from backdoor.configs.data_alone import DataAlone

    check_types(cfg, DataAlone)
    source = instantiate(cfg.data, _convert_="all")
    names = source.names()
    if names is None:
        names = source.parts(store_root(OmegaConf.select(cfg, "store.dir"))).classes
    for node, key, place, value in given:
        node[key] = number_of(str(value), names, place)


def check_classes(attack: DictConfig, names: Sequence[str]) -> None:
    """Raises UserError for a number that is none of the classes, with their names."""
    # The nearest first: `attack.target` is what most maps below it refer to.
    for *_, place, value in sorted(classes_in(attack, "attack"), key=lambda one: one[2].count(".")):
        if isinstance(value, int) and not 0 <= value < len(names):
            raise UserError(f"{place}={value}: {expected(names, str(value))}")


def classes_in(node: Any, place: str) -> Iterator[tuple[Any, Any, str, str | int]]:
    """Each class that is written below a node of an attack: its container, key, dotted place and value."""
    several = isinstance(node, ListConfig)
    for key in range(len(node)) if several else list(node) if isinstance(node, DictConfig) else ():
        inner, below = node._get_node(key), f"{place}.{key}"
        if key in ELSEWHERE or inner is None or inner._is_interpolation() or inner._is_missing() or inner._is_none():
            continue
        if isinstance(inner, DictConfig | ListConfig):
            if isinstance(inner, DictConfig) or key in HOLDS_CLASSES:
                yield from classes_in(inner, below)
        elif (several or key in HOLDS_CLASSES) and type(node[key]) in (str, int):
            yield node, key, place if several else below, node[key]


def number_of(name: str, names: Sequence[str] | None, place: str) -> int:
    """The number of the class with that name; raises UserError."""
    if names is None:
        raise UserError(f"{place}={name}: expected the number of a class, for these data give their classes no names")
    found = [number for number, one in enumerate(names) if one == name]
    found = found or [number for number, one in enumerate(names) if one.casefold() == name.strip().casefold()]
    if len(found) != 1:
        raise UserError(f"{place}={name}: {expected(names, name)}")
    return found[0]


def expected(names: Sequence[str], given: str) -> str:
    """What a class may be, with the names nearest to what was given.

    >>> expected(["cat", "dog"], "dgo")
    "expected a class from 0 to 1, or its name: cat, dog; did you mean 'dog'?"
    """
    near = get_close_matches(given.casefold(), {name.casefold(): name for name in names}, n=2, cutoff=0.5)
    nearest = [name for word in near for name in names if name.casefold() == word]
    shown = ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
    plain = all(name == str(number) for number, name in enumerate(names))  # then they tell nothing
    listed = "" if plain else f", or its name: {shown}"
    hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest and listed else ""
    return f"expected a class from 0 to {len(names) - 1}{listed}{hint}"
