"""The config of a finished run, whose folder may be a stranger's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from backdoor.configs.safe import OWN, check_safe
from backdoor.errors import UserError
from backdoor.store.run_folder import CONFIG, STATUS, RunFolder
from backdoor.store.untrusted import Unreadable

SETTING = "attack.run"
ADOPTED = ("data", "model", "seed", "reserved")  # what a later job takes from the run as it is
PLANTS = "backdoor.attacks.PoisonOnly"
WHOLE = "expected the folder of a finished run"
WORD = re.compile(r"\w+")


def open_folder(name: str, source: str) -> RunFolder:
    """The folder of a run that has come to its end; `source` begins the message of an error.

    Raises:
        UserError: anything else.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UserError(f"{source}: is a file; {WHOLE}; {OWN}")
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder; {WHOLE}")
    status = read_text(RunFolder(folder), source, STATUS)
    if status.get("state") != "done":
        raise UserError(
            f"{source}: that run is not finished (state: {status.get('state')}); let it end, or give its command again"
        )
    return RunFolder(folder)


def read_run(name: str) -> dict[str, Any]:
    """The config of a finished run with a victim; the folder is not trusted.

    Raises:
        UserError: anything else.
    """
    source = f"{SETTING}={name}"
    if not name.strip():
        raise UserError(f"{source}: {WHOLE}, got nothing; name it, or leave {SETTING} out")
    folder = open_folder(name, source)
    run = read_text(folder, source, CONFIG)
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


def check_attack(attack: dict[str, Any], folder: RunFolder, source: str) -> None:
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
    for file in (folder.plan, folder.weights("victim")):
        if not file.is_file():
            raise UserError(f"{source}: holds no {file.relative_to(folder.path)}; expected a run that trained a victim")


def read_text(folder: RunFolder, source: str, file: str) -> dict[str, Any]:
    """A JSON or YAML mapping of the folder; raises UserError for any other content."""
    try:
        return folder.mapping(file)
    except FileNotFoundError:
        raise UserError(f"{source}: holds no {file}; {WHOLE}; {OWN}") from None
    except OSError as error:
        raise UserError(f"{source}: {file} cannot be read ({error.strerror})") from None
    except Unreadable as error:
        raise UserError(f"{source}: {error}") from None
