"""`attack=external attack.run=FOLDER`: a finished run's data, attack and victim in the place of a config's own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError

from backdoor.configs.finished import ADOPTED, SETTING, read_run
from backdoor.errors import UserError

# What belongs to the finished run: a word of the command line may repeat it, not change it ...
FIXED = (*ADOPTED, "attack", "victim")
# ... but for these: the choice of this very mechanism, and where the same images lie on this machine.
OPEN = ("attack", SETTING, "data.root", "data.train", "data.test", "data.download")
# Choices whose value lies elsewhere in a config, or that are told apart by their name.
PLACES = {"label_map": "attack.label_map", "data": "data.name"}
FINISHED = "backdoor.attacks.FinishedRun"


def run_words(words: Sequence[str]) -> list[str]:
    """The finished run's `data=` choice, unless the words name one: a defense's recipes and folders go by it.

    Raises:
        UserError: a folder that holds no finished run with an attack and a victim; runs on several data sets.
    """
    if not any(SETTING in word for word in words):
        return []
    overrides = parsed(words)
    folders = [value for word in overrides if word.key_or_group == SETTING for value in values_of(word)]
    if not folders or any(word.key_or_group == "data" for word in overrides):
        return []
    names = sorted({str(read_run(folder)["data"]["name"]) for folder in folders})
    if len(names) > 1:
        raise UserError(f"{SETTING}: these runs are on different data ({', '.join(names)}); sweep over each data alone")
    return [f"data={names[0]}"]


def values_of(word: Override) -> list[str]:
    """The values that are not null: one, or several of a sweep."""
    value: Any = word.value()
    several = getattr(value, "list", [value]) if word.is_sweep_override() else [value]
    return [str(getattr(one, "text", one)) for one in several if one is not None]


def adopt(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """A job's config in which `attack.run`, if it is set, has taken its place; else the config itself.

    The finished run gives data, model, seed, reserved rows and the attack, which becomes a `FinishedRun`; no victim
    is trained. The rest (defense, trainer, logger, store) is the job's own.

    Args:
        words: the job's overrides, to tell what the user asked for.

    Raises:
        UserError: a folder as for `run_words`; a word that contradicts the run; a defense that needs trusted rows where
            the run has none; a `_target_` in the folder's config that this package's own configs do not name.
    """
    folder = value_at(cfg, SETTING)
    if folder is None:
        return cfg
    run = read_run(str(folder))
    check_words(cfg, words, run, str(folder))
    if not run["reserved"] and value_at(cfg, "defense.reserved"):
        raise UserError(
            f"{SETTING}={folder}: that run set no rows aside (reserved=0), so its victim has seen every row and "
            f"defense={cfg.defense.name} has none to trust; make the run again with reserved={cfg.defense.reserved}"
        )
    result = copy.deepcopy(cfg)
    with open_dict(result):
        for name in ADOPTED:
            result[name] = run[name]
        for place in {place_of(word) for word in parsed(words)} & {key for key in OPEN if key.startswith("data.")}:
            OmegaConf.update(result, place, OmegaConf.select(cfg, place))
        # What the attacker trained is in the folder.
        result.attack = {**run["attack"], "_target_": FINISHED, "run": str(folder), "stages": {}}
        result.victim = {"enabled": False}
    return result


def value_at(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key; None where there is none, or no mapping to hold it (types are checked later)."""
    try:
        return OmegaConf.select(cfg, key)
    except ConfigTypeError:
        return None


def parsed(words: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them."""
    return list(OverridesParser.create().parse_overrides(list(words)))


def place_of(word: Override) -> str:
    """Where in the config a word's value lies."""
    return str(word.package or PLACES.get(word.key_or_group, word.key_or_group))


def check_words(cfg: DictConfig, words: Sequence[str], run: dict[str, Any], folder: str) -> None:
    """Raises UserError for a word that asks for another thing than the finished run has."""
    theirs = OmegaConf.create({name: run[name] for name in (*FIXED, "reserved") if name in run})
    for word in parsed(words):
        place = place_of(word)
        if place in OPEN or place.partition(".")[0] not in FIXED:
            continue
        asked, has = (plain(OmegaConf.select(node, place)) for node in (cfg, theirs))
        if asked != has:
            asked, has = differing(asked, has), differing(has, asked)
            raise UserError(
                f"{word.input_line}: asks for {asked}, but the run in {SETTING}={folder} has {has}, which is fixed: "
                "data, trusted rows, attack and victim are that run's; leave it out, or make another run"
            )


def plain(value: Any) -> Any:
    """A node of a config as plain values."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def differing(one: Any, other: Any) -> Any:
    """What of a mapping differs from another; anything else as it is."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one
    return {key: value for key, value in one.items() if key not in other or other[key] != value} or "less"
