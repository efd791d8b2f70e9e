"""Errors that are the user's to mend: one clear line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class UserError(Exception):
    """A mistake in a setting or in the user's files.

    The message names the setting, what was expected, what came, and what to do.
    The command line prints it as one line and exits with status 2.
    """


def suggest(word: str, choices: Iterable[str]) -> str:
    """``did you mean 'x'? Choices: a, b, c`` for an unknown ``word``.

    >>> suggest("badnet", ["badnets", "sig"])
    "did you mean 'badnets'? Choices: badnets, sig"
    """
    names = sorted(choices)
    near = get_close_matches(word, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return f"{hint}Choices: {', '.join(names)}"


def check_whole(settings: Mapping[str, Any], *, least: int = 1) -> None:
    """Raises UserError for the first setting whose value is not an int of at least `least`.

    >>> check_whole({"steps": 5})
    """
    for setting, value in settings.items():
        if type(value) is not int or value < least:  # `type`: True is an int too, but no number
            raise UserError(f"{setting}={value}: expected a whole number of at least {least}")
