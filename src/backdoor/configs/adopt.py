"""`attack=external attack.run=FOLDER`: a finished run's data, attack and victim in the place of a config's own."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError

from backdoor.configs.places import conf_dir
from backdoor.configs.plugins import package_dirs
from backdoor.errors import UserError
from backdoor.store.untrusted import Unreadable, read_json, read_yaml

SETTING = "attack.run"
ADOPTED = ("data", "model", "seed", "reserved")
# What belongs to the finished run: a word of the command line may repeat it, not change it ...
FIXED = (*ADOPTED, "attack", "victim")
# ... but for these: the choice of this very mechanism, and where the same images lie on this machine.
OPEN = ("attack", SETTING, "data.root", "data.train", "data.test", "data.download")
# Choices whose value lies elsewhere in a config, or that are told apart by their name.
PLACES = {"label_map": "attack.label_map", "data": "data.name"}
GROUPS = ("attack", "trigger", "label_map", "data", "model", "experiment")
PLANTS, FINISHED = "backdoor.attacks.PoisonOnly", "backdoor.attacks.FinishedRun"
WHOLE = "expected the folder of a finished run"
OWN = (  # the ways that work for a config that is not the package's
    "a config of your own works in a command with this defense and --config-dir=ITS_FOLDER attack=NAME (or data=, "
    "model=), or installed as a package (entry point backdoor.conf)"
)
WORD = re.compile(r"\w+")
ACTED_ON = re.compile(r"_\w+_")  # a key that Hydra does not hand on


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


def read_run(name: str) -> dict[str, Any]:
    """The config of a finished run with a victim; the folder is not trusted.

    Raises:
        UserError: anything else.
    """
    folder, source = Path(name).expanduser(), f"{SETTING}={name}"
    if not name.strip():
        raise UserError(f"{source}: {WHOLE}, got nothing; name it, or leave {SETTING} out")
    if folder.is_file():
        raise UserError(f"{source}: is a file; {WHOLE}; {OWN}")
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder; {WHOLE}")
    status = read_text(folder, source, "status.json", read_json)
    if status.get("state") != "done":
        raise UserError(
            f"{source}: that run is not finished (state: {status.get('state')}); let it end, or give its command again"
        )
    run = read_text(folder, source, "config.yaml", read_yaml)
    for part in ("attack", "data", "model"):
        if not isinstance(run.get(part), dict):
            raise UserError(f"{source}: config.yaml has no {part}; expected the config of a finished run")
    for part in ("seed", "reserved"):
        if part not in run:
            raise UserError(f"{source}: config.yaml has no {part}; expected the config of a finished run")
    if not WORD.fullmatch(str(run["data"].get("name"))):
        raise UserError(f"{source}: config.yaml has data.name={run['data'].get('name')}; expected the name of a choice")
    for part in ADOPTED:
        check_safe(run[part], source, part)
    check_attack(run["attack"], folder, source)
    return dict(run)


def check_attack(attack: dict[str, Any], folder: Path, source: str) -> None:
    """Raises UserError for a run whose attack is not its own, or whose victim is not in its folder."""
    first = attack.get("run")
    if first is not None:
        raise UserError(f"{source}: that run itself took its victim from {SETTING}={first}; name that one")
    check_safe({key: value for key, value in attack.items() if key != "stages"}, source, "attack")
    if attack.get("_target_") != PLANTS:
        raise UserError(
            f"{source}: that run planted nothing itself (attack={attack.get('name')}); expected a run with an attack "
            "of its own or attack=none, else give attack.train= and attack.model="
        )
    if not isinstance(attack.get("groups") or {}, dict):
        raise UserError(f"{source}: config.yaml has attack.groups that are no mapping; refused")
    for file in ("plan.npz", "weights/victim.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"{source}: holds no {file}; expected a run that trained a victim")


def read_text(folder: Path, source: str, file: str, read: Callable[[Path], Any]) -> dict[str, Any]:
    """A JSON or YAML mapping of the folder."""
    try:
        value = read(folder / file)
    except FileNotFoundError:
        raise UserError(f"{source}: holds no {file}; {WHOLE}; {OWN}") from None
    except OSError as error:
        raise UserError(f"{source}: {file} cannot be read ({error.strerror})") from None
    except Unreadable as error:
        raise UserError(f"{source}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{source}: {file} cannot be read; expected a mapping, got {type(value).__name__}")
    return value


def check_safe(value: Any, source: str, place: str) -> None:
    """Refuse what could run code or read this machine's environment.

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
            if one not in known_targets():
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
def known_targets() -> frozenset[str]:
    """What the configs of attacks, data and models are made of: the package's own and those of installed packages.

    A prefix would not do: `backdoor.store.store.os.system` has one, and so do functions that delete folders.
    """
    places = [conf_dir(), *package_dirs().values()]
    files = [path for place in places for group in GROUPS for path in (place / group).rglob("*.yaml")]
    return frozenset(target for path in files for target in re.findall(r"_target_: *([\w.]+)", path.read_text()))
