"""What a stranger's config may hold: plain values, and no class that the installed configs do not name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from backdoor.configs.places import conf_dir
from backdoor.configs.plugins import package_dirs
from backdoor.errors import UserError

GROUPS = ("attack", "trigger", "label_map", "data", "model", "experiment")
OWN = (  # the ways that work for a config that is not the package's
    "a config of your own works in a command with this defense and --config-dir=ITS_FOLDER attack=NAME (or data=, "
    "model=), or installed as a package (entry point backdoor.conf)"
)
ACTED_ON = re.compile(r"_\w+_")  # a key that Hydra does not hand on


def check_safe(value: Any, source: str, place: str, groups: tuple[str, ...] = GROUPS) -> None:
    """Refuse what could run code or read this machine's environment.

    Args:
        groups: those of whose configs a `_target_` may come.

    Raises:
        UserError: a `_target_` that no config of this package names, another word that Hydra acts on (`_partial_`,
            `_recursive_`, ...), or an interpolation, which a written config has resolved.
    """
    for key, name, one in entries(value, place):
        if isinstance(name, str) and ACTED_ON.fullmatch(name):
            if name != "_target_":
                raise UserError(f"{source}: config.yaml holds {key}={one}, which no such part needs; refused")
            if not isinstance(one, str):
                raise UserError(f"{source}: config.yaml holds {key}={one!s:.60}; expected a dotted name; refused")
            if one not in known_targets(groups):
                what = f"config.yaml names {key}={one}, which no installed conf/ names"
                raise UserError(f"{source}: {what}; refused; {OWN}")
        if isinstance(one, str) and "${" in one:
            raise UserError(f"{source}: config.yaml holds {key}={one}; expected plain values; refused")


def entries(value: Any, place: str, name: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, its last part and value of a plain config and of everything below it."""
    yield place, name, value
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from entries(one, f"{place}.{key}", key)


@cache
def known_targets(groups: tuple[str, ...] = GROUPS) -> frozenset[str]:
    """What the configs of some groups are made of: the package's own and those of installed packages.

    A prefix would not do: `backdoor.store.store.os.system` has one, and so do functions that delete folders.
    """
    places = [conf_dir(), *package_dirs().values()]
    files = [path for place in places for group in groups for path in (place / group).rglob("*.yaml")]
    return frozenset(target for path in files for target in re.findall(r"_target_: *([\w.]+)", path.read_text()))
