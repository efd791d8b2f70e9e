"""Reading what a stranger may have written: bounded in size and depth, plain values only, and nothing that hangs."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

LARGEST = 16 * 2**20  # bytes of a file; a record has some kB
LARGEST_CONFIG = 2**18  # of a config, which has some kB too, and whose parser is slow
DEEPEST = 32  # levels of a config; those of the package have 7


class Unreadable(ValueError):
    """A file that is not what it should be; the message says why, in a few words."""


def content(path: Path, *, largest: int = LARGEST) -> bytes:
    """A regular file's; neither a pipe that nobody writes to nor one that never ends is waited for.

    Raises:
        OSError: it cannot be read.
        Unreadable: it is something else, or has more than `largest` bytes.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unreadable(f"{path.name} is no regular file")
        found = file.read(largest + 1)
    if len(found) > largest:
        size = f"{largest // 2**20} MB" if largest >= 2**20 else f"{largest // 2**10} kB"
        raise Unreadable(f"{path.name} has more than {size}")
    return found


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read.
        Unreadable: it holds anything else.
    """
    try:
        return json.loads(content(path))
    except Unreadable:
        raise
    except (ValueError, RecursionError):
        raise Unreadable(f"{path.name} cannot be read; it is damaged or half written") from None


def read_yaml(path: Path) -> Any:
    """The value of a YAML file as a run writes it: mappings, lists, texts, numbers; a date stays a text.

    Raises:
        OSError: it cannot be read.
        Unreadable: it holds anything else: aliases (a few hundred bytes of them expand without an end), tags, more than
            one document, more than `DEEPEST` levels.
    """
    text, depth = content(path, largest=LARGEST_CONFIG), 0
    try:
        for event in yaml.parse(text, Loader=PlainLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                what = "an alias" if isinstance(event, yaml.AliasEvent) else "a tag"
                raise Unreadable(f"{path.name} holds {what} in line {event.start_mark.line + 1}; expected plain values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise Unreadable(f"{path.name} has more than {DEEPEST} levels")
        return yaml.load(text, Loader=PlainLoader)
    except Unreadable:
        raise
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        raise Unreadable(f"{path.name} cannot be read; it is damaged or half written") from None


class PlainLoader(yaml.SafeLoader):
    """Without dates, which no config of ours means and JSON does not have."""


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
