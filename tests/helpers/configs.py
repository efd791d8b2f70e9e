"""Choices of conf/, composed as the command line does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from backdoor.configs.places import conf_dir

CONF = Path(conf_dir())


# What a config asks for with ???.
REQUIRED = {
    "data=folder": ("data.root=images",),
    "data=arrays": ("data.train=train.npz", "data.test=test.npz"),
    "trigger=image_patch": ("attack.trigger.path=patch.png",),
    "trigger=blend_image": ("attack.trigger.path=picture.png",),
}


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*words: str) -> Any:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", overrides=list(words))


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` below a plain config."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def words_for(config: str, files: Path) -> tuple[str, ...]:
    """The settings that a config cannot do without, or that show it at work."""
    suspicious = (f"attack.train={files}/train.npz", f"attack.poisoned_rows={files}/rows.npz")
    known = ("+trigger@attack.trigger=grid", "attack.target=0")
    isolated = ("attack=external", *suspicious, *known, f"attack.isolated={files}/isolated.npz")
    return {"attack=external": (*suspicious, *known), "defense=abl_unlearn": isolated}.get(config, ())
