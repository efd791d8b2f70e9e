"""`python -m backdoor.list [group ...] [--json]`: what there is to choose from, one line each."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from backdoor.configs.places import conf_dir
from backdoor.configs.plugins import package_dirs
from backdoor.errors import UserError, suggest

# Order of interest; groups that are not named here come after these.
FIRST = ("attack", "defense", "model", "data", "trigger", "label_map", "victim", "trainer", "logger")


def groups(*confs: Path) -> dict[str, dict[str, str]]:
    """Every group below these folders with its choices, as group -> choice -> first comment line; the first one counts.

    A choice is a `.yaml` file right in the group's folder; files that start with `_` and files in
    deeper folders are parts of others.
    """
    found: dict[str, dict[str, str]] = {}
    for path in (path for conf in confs for path in conf.iterdir()):
        if path.is_dir() and path.name != "hydra" and not path.name.startswith(("_", ".")):
            found[path.name] = {**_choices(path), **found.get(path.name, {})}
    order = [name for name in FIRST if name in found] + sorted(set(found) - set(FIRST))
    return {name: dict(sorted(found[name].items())) for name in order if found[name]}


def _choices(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("_"))
    return {path.stem: _summary(path) for path in files}


def _summary(path: Path) -> str:
    """The first comment line of a YAML file that is not a Hydra directive; empty if there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#") and not text.startswith("# @package"):
            return text.lstrip("# ")
        if text and not text.startswith("#"):
            return ""
    return ""


def _print_table(found: Mapping[str, Mapping[str, str]]) -> None:
    """A table on a terminal; aligned plain lines in a pipe, which `grep` and `cut` can read."""
    if not sys.stdout.isatty():
        for group, choices in found.items():
            for name, line in choices.items():
                print(f"{group + '=' + name:<32} {line}".rstrip())
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("group", "choice", "what it is"):
        style = "bold cyan" if heading == "choice" else None
        table.add_column(heading, style=style, no_wrap=heading != "what it is")
    for group, choices in found.items():
        for place, (name, line) in enumerate(choices.items()):
            table.add_row("" if place else group, escape(name), escape(line))
        table.add_row("", "", "")
    Console().print(table)
    print("Choose with group=choice: python -m backdoor attack=badnets defense=abl")


def _selected(names: list[str], *confs: Path) -> dict[str, dict[str, str]]:
    found = groups(*confs)
    for name in names:
        if name not in found:
            raise UserError(f"{name}: no such group; {suggest(name, found)}")
    return {group: choices for group, choices in found.items() if not names or group in names}


def main() -> None:
    """Entry of `python -m backdoor.list`; exits with 2 if a group is unknown."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor.list",
        description="List attacks, defenses, models, data sets and other choices.",
    )
    parser.add_argument("group", nargs="*", help="only these groups, for instance: attack defense")
    parser.add_argument("--json", action="store_true", help="print {group: {choice: description}} as JSON")
    args = parser.parse_args()
    try:
        found = _selected(args.group, conf_dir(), *package_dirs().values())
        if args.json:
            print(json.dumps(found, indent=2, ensure_ascii=False))
        else:
            _print_table(found)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # `| head` closed the pipe; the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
