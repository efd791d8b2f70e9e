"""How a stage is called in tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown_name(stage: Mapping[str, Any], gap: str = " ") -> str:
    """The stage's name, marked as a control unless the name says so itself.

    Args:
        stage: a row of result.json's `stages`: `name`, and a true `control` if it is one.
        gap: between the name and the mark.
    """
    name = str(stage["name"])
    marked = stage.get("control") and "control" not in name.lower()
    return f"{name}{gap}(control)" if marked else name
