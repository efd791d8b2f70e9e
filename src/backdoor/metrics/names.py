"""How a stage is called in tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown_name(stage: Mapping[str, Any], gap: str = " ") -> str:
    """The stage's name, marked as a control unless the name says so itself, and if the model has collapsed in it.

    Args:
        stage: a row of result.json's `stages`: `name`, and a true `control` or `collapsed`.
        gap: between the name and the mark.
    """
    name = str(stage["name"])
    marked = stage.get("control") and "control" not in name.lower()
    return name + (f"{gap}(control)" if marked else "") + (f"{gap}(collapsed)" if stage.get("collapsed") else "")


def model_name(config: Mapping[str, Any]) -> str:
    """What tells a model from others of its kind: its name or its class, and its whole numbers.

    Args:
        config: the `model` part of a run's config.

    >>> model_name({"_target_": "backdoor.models.WideResNet", "depth": 16, "widen": 1, "resize": None})
    'WideResNet-16-1'
    """
    name = config.get("name") or str(config["_target_"]).rsplit(".", 1)[-1]
    return "-".join([str(name), *(str(value) for value in config.values() if type(value) is int)])
